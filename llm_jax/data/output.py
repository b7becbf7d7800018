"""Kept until every importer names ``llm_jax.files``."""

from llm_jax.files import make_folder, write_atomic

__all__ = ["make_folder", "write_atomic"]
