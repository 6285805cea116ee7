"""A run's checkpoints, manifests, and bundles."""
