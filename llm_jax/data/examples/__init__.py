"""Examples of a task: rows of texts with labels, as folders that the loader reads."""
