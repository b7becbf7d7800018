"""Order: which row of which dataset is global row ``g``. A pure function of the seed; grain does the shuffling."""

from __future__ import annotations

import hashlib
import math
import sys
from collections.abc import Iterable, Sequence

import numpy as np

from llm_jax.types import DataError

# grain's index shuffle works on 32-bit indices.
_MAX_ROWS = 2**32 - 1
_MAX_PERIOD = 10_000
_TABLE_ROWS = 1 << 20


class Order:
    """Maps global row indices to rows of the components, without end.

    Every component is gone through epoch by epoch, each in its own order, so in any stretch of ``rows[i]`` rows that
    component ``i`` contributes from an epoch's beginning, each of its rows comes exactly once.

    Without weights the components are one dataset, shuffled as a whole: an epoch of it is an epoch of each. With
    weights the components take turns in a fixed pattern in which, over any number of rows from the start, each has its
    share to within one row.

    Args:
        rows: rows of each component.
        weights: relative share of each component's rows; honoured exactly if they have a common denominator up to
            10,000, else rounded to one part in 10,000 (``proportions`` has what is used).
        seed: any integer.
        shuffle: False takes the rows as they are stored.

    Raises:
        DataError: wrong number of weights, a weight that is not positive or too small, a component that is empty or
            too large.
    """

    def __init__(self, rows: Sequence[int], weights: Sequence[float] | None, seed: int, shuffle: bool):
        import grain

        self.rows = list(rows)
        self.first = np.concatenate([[0], np.cumsum(self.rows)]).astype(np.int64)
        if min(self.rows) < 1:
            raise DataError(f"rows per component {self.rows}; each needs at least one")
        self.weighted = weights is not None and len(self.rows) > 1
        sizes = self.rows if self.weighted else [int(self.first[-1])]
        if max(sizes) > _MAX_ROWS:
            raise DataError(
                f"{max(sizes)} rows in one component; at most {_MAX_ROWS} can be shuffled: use a larger seq_length"
            )
        _check_weights(weights, len(self.rows))
        parts = [_endless(int(self.first[i]), size, _seed32(seed, i), shuffle) for i, size in enumerate(sizes)]
        if self.weighted:
            self.pattern = Pattern(weights)
            self.proportions = [c / len(self.pattern.turn) for c in self.pattern.counts]
            self._dataset = grain.MapDataset.select_from_datasets(parts, self.pattern)
        else:
            self.proportions = [n / self.first[-1] for n in self.rows]
            self._dataset = parts[0]

    @property
    def epoch_rows(self) -> int:
        """Rows of one epoch: without weights every row once; with weights, until each component has been seen once at
        least.
        """
        if not self.weighted:
            return int(self.first[-1])
        return max(math.ceil(n / p) for n, p in zip(self.rows, self.proportions))

    def rows_at(self, indices: Iterable[int]) -> tuple[np.ndarray, np.ndarray]:
        """Components and rows in them, for global row indices ≥ 0."""
        rows = np.array([self._dataset[index] for index in indices], np.int64)
        components = np.searchsorted(self.first, rows, side="right") - 1
        return components, rows - self.first[components]


class Pattern:
    """Selection map for grain: component and index within it, for global index ``k``, by a table of one period.

    The turns of a period are given out by Tijdeman's rule (of the components whose share allows another row by now,
    the one whose deadline is next), which keeps every component within one row of its share at every point.
    """

    def __init__(self, weights: Sequence[float]):
        self.counts = _integer_weights(weights)
        period = sum(self.counts)
        counts, given = np.array(self.counts, np.int64), np.zeros(len(self.counts), np.int64)
        self.turn: list[int] = []
        self.nth: list[int] = []
        for k in range(period):
            # Eligible: its share after this row exceeds what it was given. Deadline: the row at which the next one
            # falls due.
            eligible = given * period < counts * (k + 1)
            deadline = np.where(eligible, (given + 1) * period / counts, np.inf)
            component = int(np.argmin(deadline))
            self.turn.append(component)
            self.nth.append(int(given[component]))
            given[component] += 1

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: int) -> tuple[int, int]:
        cycle, k = divmod(index, len(self.turn))
        component = self.turn[k]
        return component, cycle * self.counts[component] + self.nth[k]


def _endless(first: int, size: int, seed: int, shuffle: bool):
    """The indices from ``first`` on, ``size`` of them, epoch after epoch, as a grain dataset."""
    import grain

    if shuffle and size <= _TABLE_ROWS:
        return grain.MapDataset.source(_SmallShuffle(first, size, seed))
    rows = grain.MapDataset.range(first, first + size)
    if shuffle:
        # Once leaves neighbours correlated (0.38 at a million rows, where 0.001 is chance); twice does not.
        rows = rows.shuffle(seed=seed).shuffle(seed=_seed32(seed, -1))
    return rows.repeat()


class _SmallShuffle:
    """Source for grain: shuffled epochs from a table, since grain's index shuffle takes up to a millisecond a row in
    small sets.

    The order is the ranking of Philox's raw output, which no version of numpy changes.
    """

    def __init__(self, first: int, size: int, seed: int):
        self.first, self.size, self.seed = first, size, seed
        self._tables: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: int) -> int:
        epoch, place = divmod(index, self.size)
        table = self._tables.get(epoch)
        if table is None:
            table = (
                np.argsort(np.random.Philox(key=[self.seed, epoch]).random_raw(self.size), kind="stable") + self.first
            )
            self._tables = {**dict(list(self._tables.items())[-1:]), epoch: table}
        return int(table[place])


def _check_weights(weights: Sequence[float] | None, components: int) -> None:
    if weights is None:
        return
    if len(weights) != components:
        raise DataError(f"{len(weights)} weights {list(weights)} for {components} datasets; give one weight for each")
    if bad := [w for w in weights if not (w > 0 and math.isfinite(w))]:
        raise DataError(
            f"weight {bad[0]} in {list(weights)}; every weight must be positive: leave the dataset out instead"
        )


def _integer_weights(weights: Sequence[float]) -> list[int]:
    """Smallest integers in the proportion of the weights, if their sum is at most 10,000; else their best rounding to
    that sum.
    """
    share = np.array(weights, np.float64) / math.fsum(weights)
    for period in range(len(share), _MAX_PERIOD + 1):
        scaled = share * period
        whole = np.rint(scaled)
        if np.all(whole >= 1) and np.all(np.abs(scaled - whole) < 1e-9 * period):
            return [int(n) for n in whole]
    scaled = share * _MAX_PERIOD
    whole = np.floor(scaled).astype(np.int64)
    short = _MAX_PERIOD - int(whole.sum())
    whole[np.argsort(whole - scaled, kind="stable")[:short]] += 1
    if whole.min() < 1:
        raise DataError(
            f"weight {min(weights)} in {list(weights)} is under 1/{_MAX_PERIOD} of their sum; raise it or leave the "
            "dataset out"
        )
    return [int(n) for n in whole]


def _seed32(seed: int, component: int) -> int:
    """Seeds far apart for neighbouring seeds, components and (since grain adds the epoch to it) epochs."""
    return int.from_bytes(hashlib.blake2b(f"{seed}:{component}".encode(), digest_size=4).digest(), "big")
