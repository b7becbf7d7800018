"""Models from and to other programs.

``families`` has a table of names and layouts for each family; ``hf`` converts folders of
transformers in both directions, and ``from_gguf`` converts GGUF files.
"""
