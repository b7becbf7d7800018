"""Training: state, step, optimizer, loop, checkpoints, metrics."""
