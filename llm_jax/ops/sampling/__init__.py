"""Sampling of the next token from logits [B, V].

Settings are per row, so that one compiled program serves all.
"""

from llm_jax.ops.sampling.draws import categorical, greedy, row_keys
from llm_jax.ops.sampling.filters import ORDERS, filter_logits, min_p, top_k, top_p
from llm_jax.ops.sampling.penalties import (
    frequency_penalty,
    presence_penalty,
    repetition_penalty,
    scale_temperature,
    token_counts,
)

__all__ = [
    "ORDERS",
    "categorical",
    "filter_logits",
    "frequency_penalty",
    "greedy",
    "min_p",
    "presence_penalty",
    "repetition_penalty",
    "row_keys",
    "scale_temperature",
    "token_counts",
    "top_k",
    "top_p",
]
