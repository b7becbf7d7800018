"""Honest speed: every figure with its method, its unit and what it is compared with."""
