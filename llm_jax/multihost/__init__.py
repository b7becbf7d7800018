"""Many processes as one: joining, watching each other, ending together, and the global batch."""
