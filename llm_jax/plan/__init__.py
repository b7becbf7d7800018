"""Compiles the real train and decode steps for a slice on a machine that has none."""
