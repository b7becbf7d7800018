"""Intervals of a metric, and tests of the difference between two systems. Numpy only."""
