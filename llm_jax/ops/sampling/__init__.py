"""Sampling of the next token from logits [B, V].

Settings are per row, so that one compiled program serves all.
"""

from llm_jax.ops.sampling.draws import categorical, greedy, row_keys
from llm_jax.ops.sampling.filters import ORDERS, filter_logits, min_p, top_k, top_p

__all__ = [
    "ORDERS",
    "categorical",
    "filter_logits",
    "greedy",
    "min_p",
    "row_keys",
    "top_k",
    "top_p",
]
