"""A watermark in text: tokens of a list that the tokens before choose come a little more often
(Kirchenbauer et al. 2023), and its detector.

Whether a token is on the list is one draw of a keyed random function of the tokens before it and of
the token itself. So the list costs no permutation of the vocabulary, and the detector computes one
draw for each token of a text. The function is Threefry, the same on every platform.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from llm_jax.ops.meshes import explicit_spec, place_automatically, vary_together
from llm_jax.ops.precision import widened
from llm_jax.ops.sampling.arguments import Setting, per_row, whole_per_row
from llm_jax.ops.sampling.history import History
from llm_jax.ops.sampling.sequences import recent

MAX_WIDTH = 4
"""The most tokens before a place that may choose its list."""


class Detection(NamedTuple):
    """How much of a watermark a text has.

    Attributes:
        z: how many standard deviations the number of listed tokens is above that of other text.
        p: the probability of at least this z in text without the watermark, to the normal
            distribution.
        scored: tokens that were looked at. A token counts once after the same tokens.
        green: those of them that are on their list.
    """

    z: float
    p: float
    scored: int
    green: int


def watermark(
    logits: Array,
    history: History,
    *,
    bias: Setting,
    ratio: Setting,
    key: Setting,
    width: Setting,
) -> Array:
    """Adds a bias to the logits of the tokens that are on the list of a place.

    Args:
        logits: [B, V].
        history: the text, whose last tokens choose the list. A row with fewer than ``width``
            tokens has no list yet.
        bias: a number or [B]; 0 is off.
        ratio: between 0 and 1, a number or [B]: the share of tokens on a list.
        key: uint32, or uint32 [B]: which lists there are. Whoever has it can detect the watermark.
        width: int, or int [B], 1 to 4: how many of the last tokens choose.

    Returns:
        [B, V] in float32, or in float64 for logits of float64.

    Raises:
        ValueError: the shapes disagree, or a key or width is no integer.
    """
    if logits.ndim != 2:
        raise ValueError(f"logits have shape {logits.shape}; expected [B, V]")
    settings = (
        per_row("bias", bias, logits),
        per_row("ratio", ratio, logits),
        whole_per_row("key", jnp.asarray(key, jnp.uint32), logits),
        whole_per_row("width", width, logits),
    )

    def run(logits: Array, history: History, settings: tuple[Array, ...]) -> Array:
        bias, ratio, key, width = settings
        before = recent(history, MAX_WIDTH)[:, ::-1]
        keys = jax.vmap(_key_of_place)(key[:, 0], before, width[:, 0])
        every = jnp.arange(logits.shape[1], dtype=jnp.int32)
        draws = jax.vmap(lambda key: jax.vmap(partial(_draw, key))(every))(keys)
        listed = (draws < ratio) & (history.length[:, None] >= width)
        scores = widened(logits)
        return scores + jnp.where(listed, bias, 0.0).astype(scores.dtype)

    return place_automatically(run, explicit_spec(logits), logits, history, settings)


def detect_watermark(
    tokens: Sequence[int],
    *,
    ratio: float,
    key: int,
    width: int = 1,
    start: int = 0,
) -> Detection:
    """Looks for a watermark in a text. Runs on the host's default device.

    Args:
        tokens: ids of the text.
        ratio: as in ``watermark``.
        key: as in ``watermark``.
        width: as in ``watermark``.
        start: tokens at the beginning that are not looked at, as those of a known prompt.

    Raises:
        ValueError: a setting is out of range.
    """
    if not 0 < ratio < 1:
        raise ValueError(f"watermark ratio {ratio} is not between 0 and 1")
    if not 1 <= width <= MAX_WIDTH:
        raise ValueError(f"watermark width {width} is not from 1 to {MAX_WIDTH}")
    ids = [int(token) for token in tokens]
    ends = range(max(width, start), len(ids))
    # A repeated n-gram would count its one draw again and again.
    distinct = sorted({tuple(ids[end - width : end + 1]) for end in ends})
    scored = len(distinct)
    if scored == 0:
        return Detection(z=0.0, p=1.0, scored=0, green=0)
    green = int(np.sum(np.asarray(_draws(distinct, key, width)) < np.float32(ratio)))
    z = (green - ratio * scored) / math.sqrt(scored * ratio * (1 - ratio))
    return Detection(z=z, p=math.erfc(z / math.sqrt(2)) / 2, scored=scored, green=green)


def _draws(ngrams: list[tuple[int, ...]], key: int, width: int) -> Array:
    """The draw of the last token of each n-gram of ``width`` + 1 tokens."""
    table = np.full((_room(len(ngrams)), MAX_WIDTH + 1), 0, np.int32)
    # The token itself, then those before it, the last first.
    table[: len(ngrams), : width + 1] = np.array(ngrams, np.int32)[:, ::-1]
    return _draws_of_table(table, np.uint32(key), np.int32(width))[: len(ngrams)]


@jax.jit
def _draws_of_table(table: Array, key: Array, width: Array) -> Array:
    def of_row(row: Array) -> Array:
        return _draw(_key_of_place(key, row[1:], width), row[0])

    return jax.vmap(of_row)(table)


def _room(number: int) -> int:
    """The next power of two, so that few lengths are ever compiled."""
    return 1 << (number - 1).bit_length()


def _key_of_place(key: Array, before: Array, width: Array) -> Array:
    """The key of a list, of the tokens before its place, [4] with the last first."""

    def fold(data: Array, back: Array) -> tuple[Array, None]:
        folded = jax.random.fold_in(_as_key(data), before[back])
        return jnp.where(back < width, jax.random.key_data(folded), data), None

    first = jax.random.key_data(jax.random.key(key, impl="threefry2x32"))
    first, before, width = vary_together((first, before, width))
    return _as_key(jax.lax.scan(fold, first, jnp.arange(MAX_WIDTH))[0])


def _as_key(data: Array) -> Array:
    return jax.random.wrap_key_data(data, impl="threefry2x32")


def _draw(key: Array, token: Array) -> Array:
    """A number from 0 to 1 for a token at a place."""
    word = jax.random.key_data(jax.random.fold_in(key, token))[0]
    return (word >> 8).astype(jnp.float32) * jnp.float32(2**-24)
