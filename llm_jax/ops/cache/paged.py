"""The layout of a paged cache: tokens lie in pages of one pool, and each row has a table of its
pages, which are anywhere in the pool and may be of several rows.

The table is an array of the whole ``Cache`` and comes to a layer with the ``Chunk``: entry i of a
row is the page of its tokens i·size to (i + 1)·size - 1, or -1 where it has none. The caller makes
sure that a row has pages for the tokens that it gets, and that no page that it writes to is of
another row too. Two do so: ``decode.pages`` on the host, and ``moves`` in a compiled program, when
rows are gathered. A token without a page is not written, and what reads it gets NaN.

On a mesh the pool is in as many parts as rows are, and the pages of a row are of its own part:
numbers in the table count from the part's first page.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import Array

from llm_jax.ops.cache.chunk import Chunk

T = TypeVar("T")


@dataclass(frozen=True)
class Paged:
    """Token p of a row is in slot p modulo ``size`` of the row's page p // ``size``.

    size: tokens of a page.
    rollback: tokens that may be taken back of rows that were gathered: their pages are never
        shared.
    parts: into how many parts pool and rows are split.
    """

    size: int
    rollback: int = 0
    parts: int = 1

    def pages_of(self, length: int) -> int:
        """Pages of a row of ``length`` tokens."""
        return -(-length // self.size)

    def positions(self, chunk: Chunk, slots: int) -> None:
        """None: the keys that ``write`` gives back are at positions 0, 1, 2, …"""

    def slots_read(self, chunk: Chunk) -> int:
        """Slots in all pages of a row."""
        assert chunk.table is not None
        return chunk.table.shape[1] * self.size

    def write(self, pages: Array, new: Array, chunk: Chunk, axis: int) -> tuple[Array, Array]:
        """``pages`` with the tokens of a chunk written, and what the chunk's queries read.

        Args:
            pages: [P, size, …].
            new: [B, T, …], of the chunk's tokens.
            chunk: the call, with its table. Padding is not written.
            axis: 1.

        Returns:
            The written pages, and the tokens of each row [B, pages of a row · size, …], 0 after
            its last one; or ``new`` if the call begins its rows.
        """
        assert axis == 1
        written = self.append(pages, new, chunk)
        return written, new if chunk.begin else self.read(written, chunk)

    def append(self, pages: Array, new: Array, chunk: Chunk) -> Array:
        """``pages`` with the tokens of a chunk written; arguments as of ``write``."""
        assert chunk.table is not None
        slots = pages.shape[0] // self.parts * self.size
        at = jnp.arange(chunk.width)[None, :]
        position = chunk.start[:, None] + at
        place = position // self.size
        page = _entries(chunk.table, place)
        real = (at < chunk.count[:, None]) & (page >= 0) & (place < chunk.table.shape[1])
        slot = jnp.where(real, page * self.size + position % self.size, slots)

        def write_part(pages: Array, new: Array, slot: Array) -> Array:
            return pages.at[slot].set(new, mode="drop")

        tokens = (self.parts, -1, *new.shape[2:])
        written = self._of_parts(write_part)(
            pages.reshape(self.parts, slots, *pages.shape[2:]),
            new.astype(pages.dtype).reshape(tokens),
            slot.reshape(self.parts, -1),
        )
        return written.reshape(pages.shape)

    def read(self, pages: Array, chunk: Chunk) -> Array:
        """The tokens of each row [B, pages of a row · size, …]; 0 after its last one."""
        assert chunk.table is not None
        B, entries = chunk.table.shape

        def read_part(pages: Array, table: Array) -> Array:
            return pages[jnp.maximum(table, 0)]

        found = self._of_parts(read_part)(
            pages.reshape(self.parts, -1, *pages.shape[1:]),
            chunk.table.reshape(self.parts, -1, entries),
        )
        found = found.reshape(B, entries * self.size, *pages.shape[2:])
        later = (B, entries * self.size, *(1,) * (pages.ndim - 2))
        real = jnp.arange(entries * self.size)[None, :] < chunk.end[:, None]
        lost = jnp.repeat(chunk.table < 0, self.size, axis=1)
        nothing = jnp.nan if jnp.issubdtype(pages.dtype, jnp.floating) else 0
        found = jnp.where(lost.reshape(later), jnp.asarray(nothing, pages.dtype), found)
        # A weight of 0 does not hide the NaN that a page may have from a row before.
        return jnp.where(real.reshape(later), found, jnp.zeros_like(found))

    def check_rollback(self, most: int) -> None:
        """Raises ValueError if ``most`` tokens cannot be taken back."""
        if most > self.rollback:
            raise ValueError(
                f"up to {most} tokens are to be taken back, and rows of a paged cache may share"
                f" pages up to their last {self.rollback} tokens; make the cache with"
                f" rollback={most}"
            )

    def _of_parts(self, f):  # type: ignore[no-untyped-def]
        """``f`` of each part, given arrays with a leading axis of parts."""
        if self.parts > 1:
            return jax.vmap(f)
        return lambda *arrays: f(*(a[0] for a in arrays))


class Moves(NamedTuple):
    """How rows of a paged cache are gathered.

    Attributes:
        layout: of the pages.
        table: int32 [B', pages of a row], of the new rows.
        source: int32 [n], pages that are copied.
        target: int32 [n], where to; a number past the last page is nowhere.
    """

    layout: Paged
    table: Array
    source: Array
    target: Array


def whole_table(layout: Paged, rows: int, length: int) -> Array:
    """int32 [B, pages of a row]: pages of their own for rows of ``length`` tokens."""
    entries = layout.pages_of(length)
    own = jnp.arange(rows // layout.parts * entries, dtype=jnp.int32).reshape(-1, entries)
    return jnp.tile(own, (layout.parts, 1))


def moves(layout: Paged, table: Array, length: Array, rows: Array, pages: int) -> Moves:
    """The rows ``rows[b]`` [B'] of a cache as its rows b.

    They share whole pages. The pages that a row may yet write to, from its last ``rollback`` tokens
    on, are copied to pages that no row has then; where the pool is in parts, all pages are, since
    a row may come from another part.

    Args:
        layout: of the pages.
        table: int32 [B, pages of a row].
        length: int32 [B], tokens of each row.
        rows: int [B'].
        pages: P, of the pool.

    Raises:
        ValueError: the pool has fewer pages than B' rows may come to need.
    """
    count = rows.shape[0]
    entries = table.shape[1]
    if pages < count * entries or count % layout.parts:
        raise ValueError(
            f"{count} rows of {entries} pages are gathered in a cache of {pages} pages in"
            f" {layout.parts} parts; make it with pages={count * entries}, for a number of rows"
            " that the parts divide"
        )
    if layout.parts > 1:
        return _all_moved(layout, table, rows, pages)
    taken = table[rows]
    lengths = length[rows]
    first = jnp.maximum(lengths - layout.rollback, 0) // layout.size
    shared = (jnp.arange(entries)[None, :] < first[:, None]) & (taken >= 0)
    used = jnp.zeros((pages,), bool).at[jnp.where(shared, taken, pages)].set(True, mode="drop")
    free = jnp.nonzero(~used, size=count * entries, fill_value=pages)[0].astype(jnp.int32)
    rank = jnp.cumsum(~shared.reshape(-1)) - 1
    fresh = free[jnp.maximum(rank, 0)].reshape(count, entries)
    after = jnp.where(shared, taken, fresh)
    most = min(layout.pages_of(layout.rollback) + 1, entries)
    place = first[:, None] + jnp.arange(most)[None, :]
    source = _entries(taken, place)
    filled = (place * layout.size < lengths[:, None]) & (source >= 0)
    target = jnp.where(filled, _entries(after, place), pages)
    return Moves(layout, after, source.reshape(-1), target.reshape(-1))


def _all_moved(layout: Paged, table: Array, rows: Array, pages: int) -> Moves:
    """``moves`` with the pages of every row copied, from any part of the pool."""
    of_part = pages // layout.parts

    def first_page(rows_there: int) -> Array:
        part = jnp.arange(rows_there) // (rows_there // layout.parts)
        return (part * of_part)[:, None]

    entries = table.shape[1]
    after = whole_table(layout, rows.shape[0], entries * layout.size)
    source = (table + first_page(table.shape[0]))[rows]
    target = jnp.where(table[rows] >= 0, after + first_page(rows.shape[0]), pages)
    return Moves(layout, after, source.reshape(-1), target.reshape(-1))


def copied(tree: T, moved: Moves) -> T:
    """Every array [P, size, …] of a tree with pages copied; all are read before one is written."""
    source = jnp.maximum(moved.source, 0)
    return jax.tree.map(lambda pages: pages.at[moved.target].set(pages[source], mode="drop"), tree)


def _entries(table: Array, place: Array) -> Array:
    """Entries of a table [B, n] at places [B, m]; the last one for places past it."""
    return jnp.take_along_axis(table, jnp.minimum(place, table.shape[1] - 1), axis=1)
