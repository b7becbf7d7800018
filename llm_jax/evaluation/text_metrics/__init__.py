"""Metrics of texts, answers, labels and probabilities. Nothing here imports jax."""
