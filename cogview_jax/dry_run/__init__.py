"""Memory, communication and arithmetic of a training step that is not run."""
