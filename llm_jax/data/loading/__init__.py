"""Shards to batches: order, mixture, prefetch, and the objectives' rows."""
