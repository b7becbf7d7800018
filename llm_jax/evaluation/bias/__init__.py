"""Bias and toxicity, from scores that a caller provides. Nothing here imports jax."""
