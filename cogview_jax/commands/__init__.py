"""One module a command: its flags, and what they start."""
