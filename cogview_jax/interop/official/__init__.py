"""The CogView release: names, sizes, queries, rows of its training files."""
