"""Batches of centers: a pure function of the corpus, the settings and the step."""

from __future__ import annotations

import zlib
from typing import NamedTuple

import numpy as np

from llm_jax.classic.word2vec.config import Word2VecConfig
from llm_jax.classic.word2vec.corpus import Corpus
from llm_jax.data.loading.prefetch import Prefetched
from llm_jax.ops.word2vec import Centers
from llm_jax.types import DataError

_MOST_UPDATES = 64
_AHEAD = 2
# What the random numbers of an epoch are for.
_OF_WORDS, _OF_NEGATIVES = range(2)


class AliasTable(NamedTuple):
    """Draws from a distribution over n values in constant time (Walker 1977).

    Attributes:
        shares: float32 [n], how likely the value of a column is itself drawn.
        others: int32 [n], what is drawn otherwise.
    """

    shares: np.ndarray
    others: np.ndarray

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        """int32 values of a shape."""
        columns = rng.integers(0, len(self.shares), shape, dtype=np.int32)
        itself = rng.random(shape, dtype=np.float32) < self.shares[columns]
        return np.where(itself, columns, self.others[columns])


def alias_table(weights: np.ndarray) -> AliasTable:
    """The table of weights, which need not sum to 1."""
    size = len(weights)
    shares = weights / weights.sum() * size
    others = np.arange(size, dtype=np.int32)
    small = [i for i in range(size) if shares[i] < 1]
    large = [i for i in range(size) if shares[i] >= 1]
    while small and large:
        poor = small.pop()
        rich = large[-1]
        others[poor] = rich
        shares[rich] -= 1 - shares[poor]
        if shares[rich] < 1:
            small.append(large.pop())
    # What rounding left over is whole.
    shares[small + large] = 1
    return AliasTable(shares.astype(np.float32), others)


def keep_probabilities(counts: np.ndarray, sample: float) -> np.ndarray:
    """float32 [V], the probability that an occurrence of each word is kept.

    Args:
        counts: occurrences of each word.
        sample: see ``Word2VecConfig``.
    """
    if not sample:
        return np.ones(len(counts), np.float32)
    threshold = sample * counts.sum()
    kept = np.sqrt(threshold / counts) + threshold / counts
    return np.minimum(kept, 1).astype(np.float32)


class UpdateSize(NamedTuple):
    """What is read from the same tables, and summed: ``rows`` of ``centers`` centers each."""

    rows: int
    centers: int


# By architecture and softmax: the most rows and centers, and how often a word may be among these
# centers. The root of a tree is in every path, so that few centers bound its updates too.
_LARGEST = {
    ("skip-gram", "negative"): (UpdateSize(rows=8, centers=64), 8),
    ("cbow", "negative"): (UpdateSize(rows=16, centers=128), 32),
    ("skip-gram", "hierarchical"): (UpdateSize(rows=2, centers=64), 8),
    ("cbow", "hierarchical"): (UpdateSize(rows=8, centers=64), 32),
}


def update_size(counts: np.ndarray, config: Word2VecConfig) -> UpdateSize:
    """The size of an update: the settings', or as large as is stable.

    Updates of a word that are summed are steps of as many learning rates. Where the text has few
    different words, fewer centers keep the most frequent one from diverging.

    Args:
        counts: occurrences of each word.
        config: the settings.
    """
    largest, occurrences = _LARGEST[config.architecture, config.softmax]
    kept = counts * keep_probabilities(counts, config.sample)
    room = max(1, int(occurrences * kept.sum() / kept.max()))
    centers = config.row_length or min(largest.centers, room)
    rows = config.rows or max(1, min(largest.rows, room // centers))
    return UpdateSize(rows, centers)


class _Epoch(NamedTuple):
    """The words of one reading of the text that are kept.

    ids: int32 [rows R + 2W], padded with 0.
    left, right: uint8 [rows, R].
    progress: float32 [rows], share of all epochs that was read before each row.
    """

    ids: np.ndarray
    left: np.ndarray
    right: np.ndarray
    progress: np.ndarray


class Batches:
    """The batches of a training.

    Args:
        corpus: what is read.
        config: the settings.

    Attributes:
        size: of an update.
        updates: updates of a step, one after the other.
        rows: rows of a batch.

    Raises:
        DataError: no text has two words.
    """

    def __init__(self, corpus: Corpus, config: Word2VecConfig) -> None:
        self._config = config
        self._ids = corpus.text.ids
        lengths = np.diff(corpus.text.ends)
        if not len(lengths) or lengths.max() < 2:
            raise DataError(
                f"no text has two of the {len(corpus.vocabulary):,} words of the vocabulary, so"
                " that no word has a context; lower min_count or give more text"
            )
        self._texts = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
        counts = corpus.vocabulary.counts
        self._keep = keep_probabilities(counts, config.sample)
        self._negatives = alias_table(counts.astype(np.float64) ** config.exponent)
        kept = [int(self._kept(epoch).sum()) for epoch in range(config.epochs)]
        self.size = update_size(counts, config)
        each = self.size.rows * self.size.centers
        self.updates = min(_MOST_UPDATES, max(1, -(-max(kept) // each)))
        self.rows = self.updates * self.size.rows
        steps = [-(-n // (self.rows * self.size.centers)) for n in kept]
        self._ends = np.cumsum(steps)
        # The epoch that was read last: its number and its words.
        self._read: tuple[int, _Epoch] | None = None

    @property
    def steps(self) -> int:
        """Steps of all epochs."""
        return int(self._ends[-1])

    def iterate(self, first: int) -> Prefetched[tuple[int, Centers, np.ndarray]]:
        """Yields (step, batch, fingerprint of the batch) from a step on, made ahead in a thread."""

        def make(step: int) -> tuple[int, Centers, np.ndarray]:
            batch = self.batch(step)
            return step, batch, _fingerprint(batch)

        return Prefetched(make, first, _AHEAD)

    def batch(self, step: int) -> Centers:
        """The batch of a step. Raises IndexError for a step that the training does not have."""
        if not 0 <= step < self.steps:
            raise IndexError(f"step {step} of a training of {self.steps}")
        epoch = int(np.searchsorted(self._ends, step, side="right"))
        begin = int(self._ends[epoch - 1]) if epoch else 0
        if self._read is None or self._read[0] != epoch:
            rows = (int(self._ends[epoch]) - begin) * self.rows
            self._read = epoch, self._epoch(epoch, rows)
        return self._batch(self._read[1], step - begin, step)

    def _kept(self, epoch: int) -> np.ndarray:
        """bool [words of the text]."""
        rng = np.random.default_rng([self._config.seed, epoch, _OF_WORDS])
        return rng.random(len(self._ids), dtype=np.float32) < self._keep[self._ids]

    def _epoch(self, epoch: int, rows: int) -> _Epoch:
        config = self._config
        kept = np.flatnonzero(self._kept(epoch))
        size = rows * self.size.centers
        ids = np.zeros(size + 2 * config.window, np.int32)
        ids[config.window : config.window + len(kept)] = self._ids[kept]
        rng = np.random.default_rng([config.seed, epoch, _OF_WORDS, 1])
        reach = rng.integers(1, config.window + 1, len(kept), dtype=np.uint8)
        before, after = _room(self._texts[kept], config.window)
        left = np.zeros(size, np.uint8)
        right = np.zeros(size, np.uint8)
        left[: len(kept)] = np.minimum(reach, before)
        right[: len(kept)] = np.minimum(reach, after)
        starts = np.arange(rows) * self.size.centers
        read = np.full(rows, len(self._ids), np.int64)
        inside = starts < len(kept)
        read[inside] = kept[starts[inside]]
        progress = (epoch + read / len(self._ids)) / config.epochs
        shape = (rows, self.size.centers)
        return _Epoch(ids, left.reshape(shape), right.reshape(shape), progress.astype(np.float32))

    def _batch(self, words: _Epoch, number: int, step: int) -> Centers:
        config = self._config
        rows = slice(number * self.rows, (number + 1) * self.rows)
        windows = np.lib.stride_tricks.sliding_window_view(
            words.ids, self.size.centers + 2 * config.window
        )
        rng = np.random.default_rng([config.seed, step, _OF_NEGATIVES, 2])
        negatives = config.shared_negatives if config.softmax == "negative" else 0
        fall = config.learning_rate - config.final_rate
        return Centers(
            ids=np.ascontiguousarray(windows[:: self.size.centers][rows]),
            left=words.left[rows],
            right=words.right[rows],
            negatives=self._negatives.draw(rng, (self.rows, negatives)),
            rates=(config.learning_rate - fall * words.progress[rows]).astype(np.float32),
        )


def _room(texts: np.ndarray, window: int) -> tuple[np.ndarray, np.ndarray]:
    """uint8: words of the same text before and after each word, at most ``window``."""
    before = np.zeros(len(texts), np.uint8)
    after = np.zeros(len(texts), np.uint8)
    for distance in range(1, min(window, len(texts) - 1) + 1):
        same = texts[distance:] == texts[:-distance]
        before[distance:] += same
        after[:-distance] += same
    return before, after


def _fingerprint(batch: Centers) -> np.ndarray:
    """uint64 [1]."""
    check = 0
    for array in batch:
        check = zlib.crc32(np.ascontiguousarray(array).data, check)
    return np.array([check], np.uint64)
