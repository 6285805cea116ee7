"""Files that torch wrote, without torch."""
