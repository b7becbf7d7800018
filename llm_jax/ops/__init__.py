"""Pure functions on arrays; imports jax and nothing else.

The docstrings name shapes, units and sources.
"""

from llm_jax.ops.attention import attention
from llm_jax.ops.blockwise import blockwise_attention
from llm_jax.ops.losses import chunked_cross_entropy, cross_entropy, smoothed_nll, z_loss
from llm_jax.ops.masks import Mask, dense
from llm_jax.ops.moe import Experts, Routing, apply_experts, balance_loss, route
from llm_jax.ops.nn import dropout, gated_mlp, layer_norm, rms_norm, soft_cap
from llm_jax.ops.pooling import first_token, mean_pool
from llm_jax.ops.positions import (
    rope,
    rope_frequencies,
    segment_lengths,
    sinusoidal,
    within_segments,
)
from llm_jax.ops.relative import relative_bias
from llm_jax.ops.sampling import categorical, filter_logits, greedy, min_p, row_keys, top_k, top_p

__all__ = [
    "Experts",
    "Mask",
    "Routing",
    "apply_experts",
    "attention",
    "balance_loss",
    "blockwise_attention",
    "categorical",
    "chunked_cross_entropy",
    "cross_entropy",
    "dense",
    "dropout",
    "filter_logits",
    "first_token",
    "gated_mlp",
    "greedy",
    "layer_norm",
    "mean_pool",
    "min_p",
    "relative_bias",
    "rms_norm",
    "rope",
    "rope_frequencies",
    "route",
    "row_keys",
    "segment_lengths",
    "sinusoidal",
    "smoothed_nll",
    "soft_cap",
    "top_k",
    "top_p",
    "within_segments",
    "z_loss",
]
