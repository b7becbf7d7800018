"""Tasks: files of questions, how they are asked of a model, and how its answers are counted."""
