"""Text files in: sources, formats, cleaning, deduplication."""
