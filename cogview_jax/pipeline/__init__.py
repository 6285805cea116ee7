"""A bundle in memory, task by task."""
