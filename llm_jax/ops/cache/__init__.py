"""Caches of autoregressive decoding: explicit pytrees whose layers own their layout.

A layer's cache has ``write`` (append a chunk, and give back the keys and values that its queries
attend to), ``positions`` (where these keys are, for the mask), ``gather`` (rows, for beams),
``truncate`` (for rejected drafts) and ``axes``. ``dense``, ``ring`` and ``paged`` say which token
is in which slot; ``key_value``, ``paged_key_value``, ``latent`` and ``cross`` what is kept of a
token; ``quantized`` keeps it in int8; ``recurrent`` has the state after the last token, and no
slots; ``cache`` is the whole. ``write_cache`` writes to a plain array.
"""

from llm_jax.ops.cache.cache import (
    Cache,
    LayerCache,
    Pages,
    SelfCache,
    Slots,
    cross_cache,
    key_value_cache,
    latent_cache,
    paged_cache,
)
from llm_jax.ops.cache.chunk import Chunk, chunk_of
from llm_jax.ops.cache.cross import CrossCache
from llm_jax.ops.cache.dense import InOrder
from llm_jax.ops.cache.key_value import KeyValueCache
from llm_jax.ops.cache.latent import LatentCache
from llm_jax.ops.cache.paged import Paged
from llm_jax.ops.cache.paged_key_value import PagedKeyValueCache
from llm_jax.ops.cache.quantized import Quantized, quantize, quantized_attention
from llm_jax.ops.cache.ragged import kernel_sizes, kernel_takes, ragged_attention
from llm_jax.ops.cache.recurrent import RecurrentCache, recurrent_cache
from llm_jax.ops.cache.ring import EMPTY, Ring
from llm_jax.ops.cache.write import write_cache

__all__ = [
    "EMPTY",
    "Cache",
    "Chunk",
    "CrossCache",
    "InOrder",
    "KeyValueCache",
    "LatentCache",
    "LayerCache",
    "Paged",
    "PagedKeyValueCache",
    "Pages",
    "Quantized",
    "RecurrentCache",
    "Ring",
    "SelfCache",
    "Slots",
    "chunk_of",
    "cross_cache",
    "kernel_sizes",
    "kernel_takes",
    "key_value_cache",
    "latent_cache",
    "paged_cache",
    "quantize",
    "quantized_attention",
    "ragged_attention",
    "recurrent_cache",
    "write_cache",
]
