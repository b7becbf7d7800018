"""The cache of one layer of attention in pages: keys and values of each head, side by side."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from llm_jax.ops.attention import Options
from llm_jax.ops.cache.chunk import Chunk
from llm_jax.ops.cache.key_value import attention_over, write_vectors
from llm_jax.ops.cache.paged import Moves, Paged, copied
from llm_jax.ops.cache.quantized import (
    Quantized,
    Vectors,
    as_floats,
    as_stored,
    quantize,
    quantized_attention,
    vector_axes,
)
from llm_jax.ops.masks import Mask


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["pages"],
    meta_fields=["layout", "heads", "widths", "kernel"],
)
@dataclass(frozen=True)
class PagedKeyValueCache:
    """Keys and values of one layer in pages, as jax's ragged paged attention reads them.

    Attributes:
        pages: [P, page, 2K', W], floats or int8 (``ops.cache.quantized``): key and value of head 0,
            of head 1, and so on. K' is K and W the larger width, or more (``ops.cache.ragged``).
        layout: static, of the pages.
        heads: static, K.
        widths: static, (H, H') of a key and of a value.
        kernel: static, whether the kernel reads them; else rows are gathered from their pages.
    """

    pages: Vectors
    layout: Paged
    heads: int
    widths: tuple[int, int]
    kernel: bool = False

    def slots_read(self, chunk: Chunk) -> int:
        """How many keys ``write`` gives back."""
        return self.layout.slots_read(chunk)

    def positions(self, chunk: Chunk) -> None:
        """None: the keys that ``write`` gives back are at positions 0, 1, 2, …"""

    def write(self, chunk: Chunk, k: Array, v: Array) -> tuple[PagedKeyValueCache, Array, Array]:
        """As ``KeyValueCache.write``."""
        if chunk.begin:
            k, v = (self._left(x) for x in (k, v))
            return self.append(chunk, k, v), k, v
        written, read = self._written(chunk, k, v)
        keys, values = self._apart(as_floats(read, k.dtype))
        return written, keys, values

    def attend(
        self, chunk: Chunk, q: Array, k: Array, v: Array, mask: Mask, options: Options
    ) -> tuple[PagedKeyValueCache, Array]:
        """As ``KeyValueCache.attend``, with rows gathered from their pages."""
        if not isinstance(self.pages, Quantized):
            written, k, v = self.write(chunk, k, v)
            return written, attention_over(q, k, v, mask, options)
        written, read = self._written(chunk, k, v)
        assert isinstance(read, Quantized)
        numbers = (x.swapaxes(1, 2) for x in self._apart(read.numbers))
        scales = (x[..., 0].swapaxes(1, 2) for x in self._apart(read.scales[..., None]))
        keys, values = (Quantized(n, s) for n, s in zip(numbers, scales, strict=True))
        return written, quantized_attention(q, keys, values, mask, options)

    def append(self, chunk: Chunk, k: Array, v: Array) -> PagedKeyValueCache:
        """The cache with a chunk written: k [B, T, K, H] and v [B, T, K, H']."""
        kept = as_stored(self._beside(k, v), self.pages)
        if not isinstance(self.pages, Quantized) or not isinstance(kept, Quantized):
            return replace(self, pages=self.layout.append(self.pages, kept, chunk))  # type: ignore[arg-type]
        numbers = self.layout.append(self.pages.numbers, kept.numbers, chunk)
        scales = self.layout.append(self.pages.scales, kept.scales, chunk)
        return replace(self, pages=Quantized(numbers, scales))

    def _written(self, chunk: Chunk, k: Array, v: Array) -> tuple[PagedKeyValueCache, Vectors]:
        """The written cache, and the tokens of each row [B, S, 2K', W] as they are kept."""
        pages, read = write_vectors(self.layout, self.pages, self._beside(k, v), chunk, 1)
        return replace(self, pages=pages), read

    def _left(self, x: Array) -> Array:
        """What is left of keys or values of a chunk once they are kept."""
        return quantize(x).floats(x.dtype) if isinstance(self.pages, Quantized) else x

    def _beside(self, k: Array, v: Array) -> Array:
        """Keys and values of a chunk as [B, T, 2K', W]."""
        places, width = jax.tree.leaves(self.pages)[0].shape[2:]
        both = jnp.stack([_widened(k, width), _widened(v, width)], axis=3)
        missing = places // 2 - both.shape[2]
        both = jnp.pad(both, ((0, 0), (0, 0), (0, missing), (0, 0), (0, 0)))
        return both.reshape(*both.shape[:2], places, width)

    def _apart(self, read: Array) -> tuple[Array, Array]:
        """Keys [B, S, K, H] and values [B, S, K, H'] of [B, S, 2K', W]."""
        both = read.reshape(*read.shape[:2], -1, 2, read.shape[3])[:, :, : self.heads]
        return both[:, :, :, 0, : self.widths[0]], both[:, :, :, 1, : self.widths[1]]

    def moved(self, moves: Moves) -> PagedKeyValueCache:
        """The cache with pages copied."""
        return copied(self, moves)

    def truncate(self, most: int) -> PagedKeyValueCache:
        """The cache after up to ``most`` tokens of each row were taken back.

        Raises:
            ValueError: rows may share the pages that would be written over then.
        """
        self.layout.check_rollback(most)
        return self

    @property
    def axes(self) -> PagedKeyValueCache:
        """Logical axes in the place of each array."""
        names = ("batch", None, "act_kv_heads", None)
        return replace(self, pages=vector_axes(names, self.pages))


def _widened(x: Array, width: int) -> Array:
    return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, width - x.shape[-1])))
