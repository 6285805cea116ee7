"""The embedded drawings: scenes and captions, what a drawing shows, and whether it is true."""
