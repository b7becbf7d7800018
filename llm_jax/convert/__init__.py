"""Weights and tokenizers from and to the formats of others."""
