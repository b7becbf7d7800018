"""A corpus metric as sums over items: what resampling and tests of significance need of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from llm_jax.types import ConfigError, DataError

SEED = 12345
# Elements of one block of resampled weights: 32 MB of float64.
_BLOCK_ELEMENTS = 4_000_000
# A draw of booleans uses 32 bits of the generator at a time; blocks of such many rows keep the
# stream of one draw.
_ROWS_OF_A_WORD = 32


class ItemSums(NamedTuple):
    """What a metric needs of each item, and the metric of the sum over items.

    BLEU, accuracy, a mean and F1 are all functions of sums, so a resampled corpus needs no second
    look at its texts.

    Attributes:
        items: [N, K], statistics of each item.
        score: the metric of their sum [K].
    """

    items: np.ndarray
    score: Callable[[np.ndarray], float]

    @property
    def value(self) -> float:
        """The metric of all items."""
        return float(self.score(self.items.sum(axis=0)))


def means(values: Sequence[float] | np.ndarray, name: str = "values") -> ItemSums:
    """The mean of one value an item, as sums.

    Args:
        values: [N].
        name: of the values, for errors.

    Raises:
        DataError: there are no values, or one is NaN or infinite.
    """
    array = np.asarray(values, np.float64)
    if array.ndim != 1 or not len(array):
        raise DataError(f"{name} has the shape {array.shape}; it expects one value an item [N]")
    if not np.isfinite(array).all():
        at = int(np.flatnonzero(~np.isfinite(array))[0])
        raise DataError(
            f"{name}[{at}] is {array[at]}; leave out items without a value, and report their number"
        )
    return ItemSums(np.stack([array, np.ones_like(array)], axis=1), _ratio)


def ratios(numerators: Sequence[float], denominators: Sequence[float]) -> ItemSums:
    """A sum divided by a sum, such as the losses of documents by their tokens."""
    items = np.stack([np.asarray(numerators, float), np.asarray(denominators, float)], axis=1)
    return ItemSums(items, _ratio)


def _ratio(sums: np.ndarray) -> float:
    return float(sums[0] / sums[1]) if sums[1] else float("nan")


def check_count(name: str, value: int) -> None:
    """Raises:
    ConfigError: ``value`` is not a positive integer.
    """
    if value < 1:
        raise ConfigError(f"{name} is {value}; it expects at least 1")


def resampled_weights(count: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """How often each item is drawn in each bootstrap resample, in blocks of resamples.

    Drawn as sacrebleu draws: ``default_rng(seed).choice(count, (resamples, count))``.

    Yields:
        float64 [resamples of a block, count]; each row sums to ``count``.
    """
    rng = np.random.default_rng(seed)
    rows = max(1, _BLOCK_ELEMENTS // count)
    for start in range(0, resamples, rows):
        size = min(rows, resamples - start)
        drawn = rng.choice(count, size=(size, count), replace=True)
        flat = drawn + np.arange(size)[:, None] * count
        counts = np.bincount(flat.ravel(), minlength=size * count)
        yield counts.reshape(size, count).astype(np.float64)


def swaps(count: int, trials: int, seed: int) -> Iterator[np.ndarray]:
    """Which items two systems keep in each trial of approximate randomization, in blocks.

    Yields:
        float64 0 or 1 [trials of a block, count]; drawn as sacrebleu draws.
    """
    rng = np.random.default_rng(seed)
    rows = max(_ROWS_OF_A_WORD, _BLOCK_ELEMENTS // count // _ROWS_OF_A_WORD * _ROWS_OF_A_WORD)
    for start in range(0, trials, rows):
        size = min(rows, trials - start)
        yield rng.integers(2, size=(size, count), dtype=bool).astype(np.float64)


def scores_of(sums: ItemSums, weights: np.ndarray) -> np.ndarray:
    """The metric of each weighted corpus: [resamples], for ``weights`` [resamples, N]."""
    totals = weights @ sums.items.astype(np.float64)
    return np.array([sums.score(total) for total in totals])
