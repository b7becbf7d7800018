"""llm_jax: a small, complete stack for language models in JAX."""

__version__ = "0.1.0"
