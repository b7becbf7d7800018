"""Pure functions on arrays; imports jax and nothing else.

The docstrings name shapes, units and sources.
"""

from llm_jax.ops.alibi import alibi_bias, alibi_slopes
from llm_jax.ops.attention import attention
from llm_jax.ops.blockwise import blockwise_attention
from llm_jax.ops.cache import (
    Chunk,
    KeyValueCache,
    LatentCache,
    Slots,
    chunk_of,
    key_value_cache,
    latent_cache,
    write_cache,
)
from llm_jax.ops.linear import linear
from llm_jax.ops.losses import chunked_cross_entropy, cross_entropy, smoothed_nll, z_loss
from llm_jax.ops.masks import Mask, dense
from llm_jax.ops.moe import Experts, Routing, apply_experts, balance_loss, route
from llm_jax.ops.nn import dropout, gated, gated_mlp, layer_norm, rms_norm, soft_cap
from llm_jax.ops.pooling import first_token, mean_pool
from llm_jax.ops.positions import (
    rope,
    rope_angles,
    rope_frequencies,
    rotate,
    segment_lengths,
    sinusoidal,
    within_segments,
)
from llm_jax.ops.relative import relative_bias
from llm_jax.ops.rotary import (
    axial_frequencies,
    multi_axis_angles,
    rope_interleaved,
    rotate_interleaved,
)
from llm_jax.ops.sampling import (
    categorical,
    filter_logits,
    frequency_penalty,
    greedy,
    min_p,
    presence_penalty,
    repetition_penalty,
    row_keys,
    scale_temperature,
    token_counts,
    top_k,
    top_p,
)
from llm_jax.ops.sinusoids import grid_positions, sinusoidal_2d

__all__ = [
    "Chunk",
    "Experts",
    "KeyValueCache",
    "LatentCache",
    "Mask",
    "Routing",
    "Slots",
    "alibi_bias",
    "alibi_slopes",
    "apply_experts",
    "attention",
    "axial_frequencies",
    "balance_loss",
    "blockwise_attention",
    "categorical",
    "chunk_of",
    "chunked_cross_entropy",
    "cross_entropy",
    "dense",
    "dropout",
    "filter_logits",
    "first_token",
    "frequency_penalty",
    "gated",
    "gated_mlp",
    "greedy",
    "grid_positions",
    "key_value_cache",
    "latent_cache",
    "layer_norm",
    "linear",
    "mean_pool",
    "min_p",
    "multi_axis_angles",
    "presence_penalty",
    "relative_bias",
    "repetition_penalty",
    "rms_norm",
    "rope",
    "rope_angles",
    "rope_frequencies",
    "rope_interleaved",
    "rotate",
    "rotate_interleaved",
    "route",
    "row_keys",
    "scale_temperature",
    "segment_lengths",
    "sinusoidal",
    "sinusoidal_2d",
    "smoothed_nll",
    "soft_cap",
    "token_counts",
    "top_k",
    "top_p",
    "within_segments",
    "write_cache",
    "z_loss",
]
