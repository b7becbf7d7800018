"""What may be done to a tree of parameters."""
