"""Pure functions on arrays; imports jax and nothing else. See each docstring for shapes, units and sources."""

from llm_jax.ops.attention import attention
from llm_jax.ops.blockwise import blockwise_attention
from llm_jax.ops.kv_cache import KVCache, init_cache
from llm_jax.ops.losses import chunked_cross_entropy, cross_entropy
from llm_jax.ops.masks import Mask, dense
from llm_jax.ops.moe import Experts, Routing, apply_experts, balance_loss, route
from llm_jax.ops.nn import dropout, gated_mlp, layer_norm, rms_norm, soft_cap
from llm_jax.ops.positions import rope, rope_frequencies, sinusoidal
from llm_jax.ops.sampling import categorical, filter_logits, greedy, min_p, row_keys, top_k, top_p

__all__ = [
    "Experts",
    "KVCache",
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
    "gated_mlp",
    "greedy",
    "init_cache",
    "layer_norm",
    "min_p",
    "rms_norm",
    "rope",
    "rope_frequencies",
    "route",
    "row_keys",
    "sinusoidal",
    "soft_cap",
    "top_k",
    "top_p",
]
