"""The tokens of each row so far: the state of which penalties and rules about tokens are made."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from llm_jax.ops.cache.chunk import Chunk
from llm_jax.ops.cache.dense import write_counted


class History(NamedTuple):
    """Tokens of each row, its prompt first.

    Whatever a rule needs to know of a text (which tokens it has and how often, its n-grams, its
    length) is computed from these arrays. So taking tokens back is a change of ``length``, and
    the states after several tokens of a draft differ in ``length`` only.

    Attributes:
        ids: int32 [B, S]; places from ``length`` on mean nothing.
        prompt: int32 [B], tokens of the prompt.
        length: int32 [B], tokens of the prompt and new ones.
        source_ids: int32 [B, S'], what an encoder read; the prompt where there is no encoder.
        source_length: int32 [B].
    """

    ids: Array
    prompt: Array
    length: Array
    source_ids: Array
    source_length: Array

    @property
    def generated(self) -> Array:
        """int32 [B], number of new tokens."""
        return self.length - self.prompt

    @property
    def is_token(self) -> Array:
        """bool [B, S], the places that hold a token."""
        return _places(self.ids) < self.length[:, None]

    @property
    def is_new(self) -> Array:
        """bool [B, S], the places that hold a new token."""
        return self.is_token & (_places(self.ids) >= self.prompt[:, None])

    @property
    def is_source(self) -> Array:
        """bool [B, S'], the places of ``source_ids`` that hold a token."""
        return _places(self.source_ids) < self.source_length[:, None]

    def append(self, tokens: Array, counts: Array) -> History:
        """The history with the first ``counts`` [B] tokens of ``tokens`` [B, T] after each row.

        The caller keeps each row within S.
        """
        chunk = Chunk(self.length, counts, tokens.shape[1])
        ids = write_counted(self.ids, tokens, chunk, axis=1)
        return self._replace(ids=ids, length=self.length + counts)

    def truncate(self, lengths: Array) -> History:
        """The history with rows cut to ``lengths`` [B]."""
        return self._replace(length=jnp.minimum(self.length, lengths))

    def gather(self, rows: Array) -> History:
        """The history whose row b is row ``rows[b]`` of this one. rows: int [B']."""
        return History(*(jnp.take(a, rows, axis=0) for a in self))


def history_of(
    tokens: Array,
    lengths: Array,
    room: int,
    *,
    source_ids: Array | None = None,
    source_length: Array | None = None,
) -> History:
    """The history of prompts, before the first new token.

    Args:
        tokens: int [B, T], prompts, padded on the right.
        lengths: int [B].
        room: S, at least T.
        source_ids: int [B, S'], what an encoder reads; default: the prompts.
        source_length: int [B].

    Raises:
        ValueError: the prompts are longer than ``room``.
    """
    missing = room - tokens.shape[1]
    if missing < 0:
        raise ValueError(f"prompts of {tokens.shape[1]} places do not fit a history of {room}")
    lengths = jnp.asarray(lengths, jnp.int32)
    ids = jnp.pad(jnp.asarray(tokens, jnp.int32), ((0, 0), (0, missing)))
    if source_ids is None or source_length is None:
        source_ids = tokens
        source_length = lengths
    source = jnp.asarray(source_ids, jnp.int32)
    return History(ids, lengths, lengths, source, jnp.asarray(source_length, jnp.int32))


def _places(ids: Array) -> Array:
    """The places 0 to S - 1 of ids [B, S] as [1, S]."""
    return jnp.expand_dims(jnp.arange(ids.shape[1]), 0)
