"""One update of word2vec's two tables, for many centers at once (Mikolov et al. 2013).

A row of words has R centers and W more words on either side, so that no pair is lost at its ends:
T = R + 2W. Center i is the word T[i + W], and its contexts are up to ``left`` words before and
``right`` words after it. An input and an output vector are gathered once for each word of a row,
all products are matrix products of a row, and the tables are updated in place: what a step costs
does not depend on the number of words V.

Letters: B rows · R centers · W window · T = R + 2W · N negatives · D dimensions · P path · V words.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

# A jax array, or one of numpy where it is made.
Given = Any
_LEAST = 1e-30


class Tables(NamedTuple):
    """Vectors of words.

    inputs: float32 [V, D], of the words that predict; these are the word vectors.
    outputs: float32 [V, D], of the words that are predicted; with hierarchical softmax, of the
        inner nodes of the tree [V - 1, D].
    """

    inputs: Array
    outputs: Array


class Centers(NamedTuple):
    """Rows of words and what is drawn for them.

    ids: int32 [B, T].
    left, right: uint8 [B, R], contexts before and after each center, at most W; both 0 of padding.
    negatives: int32 [B, N], words that the row's targets are told from; N is 0 with hierarchical
        softmax.
    rates: float32 [B], learning rate.
    """

    ids: Given
    left: Given
    right: Given
    negatives: Given
    rates: Given

    @property
    def window(self) -> int:
        """W."""
        return (self.ids.shape[1] - self.left.shape[1]) // 2

    @property
    def centers(self) -> Array:
        """int32 [B, R]."""
        return self.ids[:, self.window : self.window + self.left.shape[1]]


class Paths(NamedTuple):
    """The leaves of a Huffman tree.

    nodes: int32 [V, P], inner nodes from the root to each word; 0 after the end.
    signs: int8 [V, P], 1 where the path goes left (code 0), -1 where it goes right, 0 after the
        end.
    """

    nodes: Given
    signs: Given


class Rows(NamedTuple):
    """What is added to a table: ``values`` [n, D] at the rows ``ids`` [n]."""

    ids: Array
    values: Array


class Update(NamedTuple):
    """What some centers add to the tables, and their loss before it.

    inputs, outputs: what is added.
    losses: float32 [B], sums of the loss over the predictions of each row.
    predictions: float32 [B], how many there are: pairs of skip-gram, centers of CBOW.
    """

    inputs: Rows
    outputs: Rows
    losses: Array
    predictions: Array


UpdateRule = Callable[[Tables, Centers], Update]


def apply(tables: Tables, update: Update) -> Tables:
    """The tables with an update; what hits one row several times is summed."""
    return Tables(
        tables.inputs.at[update.inputs.ids].add(update.inputs.values),
        tables.outputs.at[update.outputs.ids].add(update.outputs.values),
    )


def skip_gram_negative(tables: Tables, words: Centers, negative: float) -> Update:
    """Each center predicts each of its contexts, with negative sampling.

    Args:
        tables: the vectors.
        words: the centers.
        negative: negatives of a pair. A row's N negatives are shared by its pairs and weigh
            ``negative`` / N each; one that is a pair's target does not count for it.
    """
    near = _band(words)
    x = tables.inputs[words.centers]
    y = tables.outputs[words.ids]
    z = tables.outputs[words.negatives]
    positive = _sigmoid(jnp.einsum("brd,btd->brt", x, y))
    wrong = _sigmoid(jnp.einsum("brd,bnd->brn", x, z))
    differs = (words.ids[:, :, None] != words.negatives[:, None, :]).astype(x.dtype)
    weight = jnp.einsum("brt,btn->brn", near, differs) * (negative / z.shape[1])
    rates = words.rates[:, None, None]
    g = rates * near * (1 - positive)
    h = -rates * weight * wrong
    to_x = jnp.einsum("brt,btd->brd", g, y) + jnp.einsum("brn,bnd->brd", h, z)
    to_y = jnp.einsum("brt,brd->btd", g, x)
    to_z = jnp.einsum("brn,brd->bnd", h, x)
    losses = _sum(near * -_log(positive)) - _sum(weight * _log(1 - wrong))
    return Update(
        _rows((words.centers, to_x)),
        _rows((words.ids, to_y), (words.negatives, to_z)),
        losses,
        _sum(near),
    )


def cbow_negative(tables: Tables, words: Centers, negative: float) -> Update:
    """The mean of its contexts predicts each center, with negative sampling.

    Every context gets the whole gradient of the mean, as in word2vec.c. The arguments are those of
    ``skip_gram_negative``.
    """
    near = _near(words)
    mean, some = _means(tables, words, near)
    y = tables.outputs[words.centers]
    z = tables.outputs[words.negatives]
    positive = _sigmoid(jnp.sum(mean * y, axis=2))
    wrong = _sigmoid(jnp.einsum("brd,bnd->brn", mean, z))
    differs = words.centers[:, :, None] != words.negatives[:, None, :]
    weight = jnp.where(differs, some[:, :, None], 0) * (negative / z.shape[1])
    g = (words.rates[:, None] * some * (1 - positive))[:, :, None]
    h = -words.rates[:, None, None] * weight * wrong
    to_mean = g * y + jnp.einsum("brn,bnd->brd", h, z)
    to_z = jnp.einsum("brn,brd->bnd", h, mean)
    losses = _sum(some * -_log(positive)) - _sum(weight * _log(1 - wrong))
    return Update(
        _rows((words.ids, _spread(to_mean, near))),
        _rows((words.centers, g * mean), (words.negatives, to_z)),
        losses,
        _sum(some),
    )


def skip_gram_hierarchical(tables: Tables, words: Centers, paths: Paths) -> Update:
    """Each center predicts each of its contexts, with hierarchical softmax.

    Args:
        tables: the vectors.
        words: the centers.
        paths: of all words.
    """
    near = _near(words)
    window = words.window
    x = tables.inputs[words.centers]
    nodes = paths.nodes[words.ids]
    signs = paths.signs[words.ids].astype(x.dtype)[:, :, None, :]
    y = tables.outputs[nodes]
    # The centers around each word: of word t, those from t - 2W to t.
    around = _windows(_padded(x, 2 * window), y.shape[1], 2 * window + 1)
    pairs = _windows(_padded(near, 2 * window), y.shape[1], 2 * window + 1)
    pair = jnp.diagonal(pairs[..., ::-1], axis1=2, axis2=3)
    right = _sigmoid(signs * jnp.einsum("btcd,btpd->btcp", around, y))
    g = words.rates[:, None, None, None] * pair[..., None] * signs * (1 - right)
    to_y = jnp.einsum("btcp,btcd->btpd", g, around)
    to_around = jnp.einsum("btcp,btpd->btcd", g, y)
    length = x.shape[1]
    # A center is among those around the words from itself to 2W words on.
    shifted = (
        to_around[:, 2 * window - c : 2 * window - c + length, c] for c in range(2 * window + 1)
    )
    to_x = sum(shifted, start=jnp.zeros((), x.dtype))
    counted = pair[..., None] * jnp.abs(signs)
    losses = _sum(counted * -_log(right))
    return Update(_rows((words.centers, to_x)), _rows((nodes, to_y)), losses, _sum(pair))


def cbow_hierarchical(tables: Tables, words: Centers, paths: Paths) -> Update:
    """The mean of its contexts predicts each center, with hierarchical softmax.

    The arguments are those of ``skip_gram_hierarchical``.
    """
    near = _near(words)
    mean, some = _means(tables, words, near)
    nodes = paths.nodes[words.centers]
    signs = paths.signs[words.centers].astype(mean.dtype)
    y = tables.outputs[nodes]
    right = _sigmoid(signs * jnp.einsum("brd,brpd->brp", mean, y))
    g = words.rates[:, None, None] * some[:, :, None] * signs * (1 - right)
    to_y = g[..., None] * mean[:, :, None, :]
    to_mean = jnp.einsum("brp,brpd->brd", g, y)
    losses = _sum(some[:, :, None] * jnp.abs(signs) * -_log(right))
    return Update(
        _rows((words.ids, _spread(to_mean, near))), _rows((nodes, to_y)), losses, _sum(some)
    )


def _sigmoid(x: Array) -> Array:
    return jax.nn.sigmoid(x)


def _log(x: Array) -> Array:
    """ln x, finite at 0."""
    return jnp.log(jnp.maximum(x, _LEAST))


def _sum(x: Array) -> Array:
    """Sums over all but the rows."""
    return jnp.sum(x, axis=tuple(range(1, x.ndim)))


def _rows(*parts: tuple[Array, Array]) -> Rows:
    ids = [part.reshape(-1) for part, _ in parts]
    values = [part.reshape(-1, part.shape[-1]) for _, part in parts]
    return Rows(jnp.concatenate(ids), jnp.concatenate(values))


def _within(words: Centers, offset: Array) -> Array:
    """Whether words at ``offset`` from the centers [R, …] are contexts of them [B, R, …]."""
    left = words.left.astype(jnp.int32)[:, :, None]
    right = words.right.astype(jnp.int32)[:, :, None]
    offset = offset[None]
    return ((offset >= -left) & (offset <= right) & (offset != 0)).astype(jnp.float32)


def _band(words: Centers) -> Array:
    """float32 [B, R, T]: 1 where a word is a context of a center."""
    length = words.left.shape[1]
    places = jnp.arange(words.ids.shape[1])[None, :] - words.window
    return _within(words, places - jnp.arange(length)[:, None])


def _near(words: Centers) -> Array:
    """float32 [B, R, 2W + 1]: 1 where the word at an offset from -W to W is a context."""
    offsets = jnp.arange(-words.window, words.window + 1)[None, :]
    return _within(words, offsets)


def _means(tables: Tables, words: Centers, near: Array) -> tuple[Array, Array]:
    """Means of the contexts' vectors [B, R, D], and whether there are contexts [B, R]."""
    x = tables.inputs[words.ids]
    length = words.left.shape[1]
    count = jnp.sum(near, axis=2)
    # Sums of shifted rows are four times as fast as a product with a band matrix on a CPU.
    shifted = (near[:, :, o, None] * x[:, o : o + length] for o in range(near.shape[2]))
    total = sum(shifted, start=jnp.zeros((), x.dtype))
    return total / jnp.maximum(count, 1)[:, :, None], (count > 0).astype(x.dtype)


def _spread(values: Array, near: Array) -> Array:
    """The transpose of the sum over contexts: [B, R, D] -> [B, T, D]."""
    width = near.shape[2]
    length = values.shape[1] + width - 1
    values = _padded(values, width - 1)
    near = _padded(near, width - 1)
    starts = [width - 1 - o for o in range(width)]
    shifted = (
        near[:, start : start + length, o, None] * values[:, start : start + length]
        for o, start in enumerate(starts)
    )
    return sum(shifted, start=jnp.zeros((), values.dtype))


def _padded(x: Array, by: int) -> Array:
    """``x`` [B, R, …] with ``by`` zeros on either side of R."""
    return jnp.pad(x, ((0, 0), (by, by), *[(0, 0)] * (x.ndim - 2)))


def _windows(x: Array, count: int, width: int) -> Array:
    """[B, n, D] -> [B, count, width, D]: runs of ``width`` from each of the first places."""
    places = jnp.arange(count)[:, None] + jnp.arange(width)[None, :]
    return x[:, places]
