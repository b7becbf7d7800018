"""What one call appends to the rows of a cache."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["start", "count", "table"],
    meta_fields=["width", "begin"],
)
@dataclass(frozen=True)
class Chunk:
    """The tokens that one call appends to each row: part of a prompt, a step, or a draft.

    Attributes:
        start: int32 [B], tokens that each row has before the call.
        count: int32 [B], tokens that it gets, 0 to T. They are the first of its T places; padding
            follows them.
        width: T, static.
        begin: static. The call begins its rows: ``start`` is 0, so that queries see only keys of
            the call, and attention over the call's own tokens takes the place of attention over
            all slots. What the cache held before is forgotten.
        table: int32 [B, pages] where the cache is paged (``ops.cache.paged``), else None: the page
            of each row's tokens 0 to the size of a page, of the next ones, and so on.
    """

    start: Array
    count: Array
    width: int
    begin: bool = False
    table: Array | None = None

    @property
    def end(self) -> Array:
        """int32 [B], tokens that each row has after the call."""
        return self.start + self.count


def chunk_of(
    segment_ids: Array, length: Array, *, begin: bool, table: Array | None = None
) -> Chunk:
    """The chunk of a call.

    Args:
        segment_ids: int [B, T], 0 for padding, which is on the right.
        length: int32 [B], tokens in the cache; ignored where the call begins its rows.
        begin: as in ``Chunk``.
        table: as in ``Chunk``.
    """
    count = jnp.sum(segment_ids != 0, axis=1, dtype=jnp.int32)
    start = jnp.zeros_like(count) if begin else length
    return Chunk(start, count, segment_ids.shape[1], begin, table)
