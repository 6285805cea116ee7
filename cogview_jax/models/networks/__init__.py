"""Networks beside the transformer: feature networks whose weights are given, discriminators."""
