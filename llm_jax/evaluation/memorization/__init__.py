"""Contamination of evaluation sets, and what a model has memorized. Numpy only."""
