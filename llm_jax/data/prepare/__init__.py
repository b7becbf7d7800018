"""Text to tokenized shards: training a vocabulary, and the stages of ``llm-jax data prepare``."""
