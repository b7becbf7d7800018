"""The cache of a whole model: that of each layer, and the length of each row."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from llm_jax.ops.cache.cross import CrossCache
from llm_jax.ops.cache.dense import InOrder
from llm_jax.ops.cache.key_value import KeyValueCache, Layout
from llm_jax.ops.cache.latent import LatentCache
from llm_jax.ops.cache.paged import Moves, Paged, moves, whole_table
from llm_jax.ops.cache.paged_key_value import PagedKeyValueCache
from llm_jax.ops.cache.quantized import zero_vectors
from llm_jax.ops.cache.recurrent import RecurrentCache
from llm_jax.ops.cache.ring import Ring

SelfCache = KeyValueCache | LatentCache | PagedKeyValueCache | RecurrentCache


class LayerCache(NamedTuple):
    """What one layer keeps: of its own tokens, and of an encoder's where there is one."""

    own: SelfCache
    cross: CrossCache | None = None


class Cache(NamedTuple):
    """The state of autoregressive decoding. Empty or filled it has one structure, so that one
    program serves both.

    Attributes:
        layers: one entry a layer, from the first to the last.
        length: int32 [B], tokens of each row; 0 in an empty cache.
        encoder_segments: int32 [B, S], segments of the encoder's tokens, 0 for padding; None for a
            model without an encoder.
        table: int32 [B, pages of a row], where the layers are paged (``ops.cache.paged``), else
            None.
    """

    layers: tuple[LayerCache, ...]
    length: Array
    encoder_segments: Array | None = None
    table: Array | None = None

    @property
    def dtype(self) -> jnp.dtype:
        """Type of the keys and values."""
        return jax.tree.leaves(self.layers)[0].dtype

    def gather(self, rows: Array) -> Cache:
        """The cache whose row b is row ``rows[b]`` of this one, for beams. rows: int [B'].

        Rows of a paged cache share whole pages afterwards (``ops.cache.paged.moves``).

        Raises:
            ValueError: a paged cache has fewer pages than the rows may come to need.
        """
        return self._moved(rows, self._moves(rows))

    def _moved(self, rows: Array, moved: Moves | None) -> Cache:
        layers = tuple(
            LayerCache(_gathered(layer.own, rows, moved), layer.cross and layer.cross.gather(rows))
            for layer in self.layers
        )
        segments = self.encoder_segments
        if segments is not None:
            segments = jnp.take(segments, rows, axis=0)
        table = None if moved is None else moved.table
        return Cache(layers, jnp.take(self.length, rows, axis=0), segments, table)

    def planned(self, rows: Array, table: Array, source: Array, target: Array) -> Cache:
        """The paged cache whose row b is row ``rows[b]`` of this one and has the pages
        ``table[b]``, as a host plans them (``decode.pages``).

        Args:
            rows: int [B'].
            table: int32 [B', pages of a row].
            source: int [n], pages that are copied.
            target: int [n], where to; a number past the last page is nowhere.

        Raises:
            ValueError: the cache is not paged.
        """
        layout = self._paged().layout
        assert isinstance(layout, Paged)
        return self._moved(rows, Moves(layout, table, source, target))

    def _moves(self, rows: Array) -> Moves | None:
        """How the rows of a paged cache are gathered; None of any other."""
        if self.table is None:
            return None
        own = self._paged()
        assert isinstance(own.layout, Paged)
        pages = jax.tree.leaves(own)[0].shape[0]
        return moves(own.layout, self.table, self.length, rows, pages)

    def _paged(self) -> LatentCache | PagedKeyValueCache:
        own = self.layers[0].own
        if self.table is None or isinstance(own, KeyValueCache | RecurrentCache):
            raise ValueError("the cache has no pages: make it with layout 'paged'")
        return own

    def truncate(self, lengths: Array, *, most: int) -> Cache:
        """The cache with rows cut to ``lengths``, as if later tokens had never been written.

        Args:
            lengths: int [B]. A row that is not longer stays as it is.
            most: static. The caller makes sure that no row gets shorter by more tokens than this
                than it was after its latest call; with a ring, the tokens beyond are gone.

        Raises:
            ValueError: a ring keeps fewer tokens than needed (see ``ops.cache.ring``).
        """
        layers = tuple(
            LayerCache(layer.own.truncate(most), layer.cross and layer.cross.truncate(most))
            for layer in self.layers
        )
        return self._replace(layers=layers, length=jnp.minimum(self.length, lengths))

    @property
    def axes(self) -> Cache:
        """Logical axes in the place of each array."""
        layers = tuple(
            LayerCache(layer.own.axes, layer.cross and layer.cross.axes) for layer in self.layers
        )
        segments = None if self.encoder_segments is None else ("batch", None)
        table = None if self.table is None else ("batch", None)
        return Cache(layers, ("batch",), segments, table)  # type: ignore[arg-type]


def _gathered(own: SelfCache, rows: Array, moved: Moves | None) -> SelfCache:
    """The cache of a layer whose rows are ``rows``, by ``moved`` where it is paged."""
    if moved is None or isinstance(own, KeyValueCache | RecurrentCache):
        assert not isinstance(own, PagedKeyValueCache)
        return own.gather(rows)
    return own.moved(moved)


class Pages(NamedTuple):
    """The pool of a paged cache.

    Attributes:
        size: tokens of a page.
        count: how many there are.
        parts: into how many parts pool and rows are split, on a mesh.
    """

    size: int
    count: int  # type: ignore[assignment]  # hides tuple.count
    parts: int = 1


class Slots(NamedTuple):
    """How many tokens a cache is for.

    Attributes:
        rows: B.
        length: tokens of each row, at most.
        rollback: tokens that ``truncate`` may take back in layers with a window or with pages.
        int8: keep keys, values and latents in int8 (``ops.cache.quantized``).
        pages: where a row's tokens are in pages, else None. Layers with a window then keep every
            token too, so that any prefix can be shared.
    """

    rows: int
    length: int
    rollback: int = 0
    int8: bool = False
    pages: Pages | None = None

    def layout(self, window: int) -> tuple[Layout, int]:
        """The layout for a layer with this window (0 is none), and its number of slots: a ring
        where it is smaller than the row.
        """
        ring = Ring(window, self.rollback)
        if window and ring.slots < self.length:
            return ring, ring.slots
        return InOrder(), self.length

    @property
    def paged(self) -> Paged:
        """The layout of pages."""
        assert self.pages is not None
        return Paged(self.pages.size, self.rollback, self.pages.parts)

    def table(self) -> Array | None:
        """The table of a cache whose pool has pages for every token of every row: each has its own.
        All -1 where it has fewer pages, which a host gives out. None without pages.
        """
        if self.pages is None:
            return None
        layout = self.paged
        if self.pages.count >= self.rows * layout.pages_of(self.length):
            return whole_table(layout, self.rows, self.length)
        return jnp.full((self.rows, layout.pages_of(self.length)), -1, jnp.int32)


def key_value_cache(
    slots: Slots, kv_heads: int, widths: tuple[int, int], dtype: jnp.dtype, *, window: int = 0
) -> KeyValueCache:
    """An empty cache of one layer of attention. widths: of a key and of a value."""
    layout, length = slots.layout(window)
    keys, values = (
        zero_vectors((slots.rows, kv_heads, length, width), dtype, int8=slots.int8)
        for width in widths
    )
    return KeyValueCache(keys, values, layout)


def paged_cache(
    slots: Slots,
    kv_heads: int,
    widths: tuple[int, int],
    dtype: jnp.dtype,
    *,
    padded: tuple[int, int] | None = None,
) -> PagedKeyValueCache:
    """An empty cache of one layer of attention, in the pages of ``slots``.

    Args:
        slots: how many tokens it is for.
        kv_heads: K.
        widths: of a key and of a value.
        dtype: of both.
        padded: heads and width as TPU's kernel takes them (``ops.cache.ragged``), which then reads
            the pages; None gathers rows from their pages.
    """
    assert slots.pages is not None
    heads, width = padded or (kv_heads, max(widths))
    shape = (slots.pages.count, slots.pages.size, 2 * heads, width)
    pages = zero_vectors(shape, dtype, int8=slots.int8)
    return PagedKeyValueCache(pages, slots.paged, kv_heads, widths, padded is not None)


def latent_cache(
    slots: Slots, latent_dim: int, rope_dim: int, dtype: jnp.dtype, *, window: int = 0
) -> LatentCache:
    """An empty cache of one layer of latent attention; in pages where ``slots`` has them."""
    layout: Layout | Paged
    layout, length = slots.layout(window)
    rows = slots.rows
    if slots.pages is not None:
        layout = slots.paged
        rows = slots.pages.count
        length = slots.pages.size
    latents = zero_vectors((rows, length, latent_dim), dtype, int8=slots.int8)
    return LatentCache(latents, jnp.zeros((rows, length, rope_dim), dtype), layout)


def cross_cache(
    rows: int, length: int, kv_heads: int, head_dim: int, dtype: jnp.dtype
) -> CrossCache:
    """An empty cache of one layer's attention to ``length`` tokens of an encoder."""
    shape = (rows, kv_heads, length, head_dim)
    return CrossCache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))
