"""Weights from and to other programs: families as tables of names and layouts, safetensors and GGUF
files, tokenizers.
"""
