"""Text to ids and back: SentencePiece, Hugging Face, tiktoken and Marian behind one protocol.

This package imports numpy and, where they are used, sentencepiece, tokenizers and jinja2; never
jax.
"""
