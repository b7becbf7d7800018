"""Order: which row of which dataset is global row ``g``. A pure function of the seed."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence

import numpy as np

from llm_jax.types import DataError

# grain's index shuffle works on 32-bit indices.
_MAX_ROWS = 2**32 - 1
_MAX_PERIOD = 10_000
_TABLE_ROWS = 1 << 20


class IndexShuffle:
    """Maps global row indices to rows of the components, without end.

    Every component is gone through epoch by epoch, each in its own order, so in any stretch of
    ``rows[i]`` rows that component ``i`` contributes from an epoch's beginning, each of its rows
    comes exactly once.

    Without weights the components are one dataset, shuffled as a whole: an epoch of it is an epoch
    of each. With weights the components take turns in a fixed pattern in which, over any number of
    rows from the start, each has its share to within one row.

    Args:
        rows: rows of each component.
        weights: relative share of each component's rows; honoured exactly if they have a common
            denominator up to 10,000, else rounded to one part in 10,000 (``proportions`` has what
            is used).
        seed: any integer.
        shuffle: False takes the rows as they are stored.

    Raises:
        DataError: wrong number of weights, a weight that is not positive or too small, a component
            that is empty or too large.
    """

    def __init__(
        self, rows: Sequence[int], weights: Sequence[float] | None, seed: int, shuffle: bool
    ):
        self.rows = list(rows)
        self.first = np.concatenate([[0], np.cumsum(self.rows)]).astype(np.int64)
        if min(self.rows) < 1:
            raise DataError(f"rows per component {self.rows}; each needs at least one")
        self.weighted = weights is not None and len(self.rows) > 1
        sizes = self.rows if self.weighted else [int(self.first[-1])]
        if max(sizes) > _MAX_ROWS:
            raise DataError(
                f"{max(sizes)} rows in one component; at most {_MAX_ROWS} can be shuffled: use a"
                " larger seq_length"
            )
        _check_weights(weights, len(self.rows))
        self._parts = [_endless(size, _seed32(seed, i), shuffle) for i, size in enumerate(sizes)]
        if self.weighted:
            self.pattern = Pattern(weights)
            self.proportions = [c / len(self.pattern.turn) for c in self.pattern.counts]
        else:
            self.proportions = [n / self.first[-1] for n in self.rows]

    @property
    def epoch_rows(self) -> int:
        """Rows of one epoch: without weights every row once; with weights, until each component has
        been seen once at least.
        """
        if not self.weighted:
            return int(self.first[-1])
        return max(math.ceil(n / p) for n, p in zip(self.rows, self.proportions))

    def rows_at(self, indices: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Components and rows in them, for global row indices ≥ 0."""
        indices = np.asarray(indices, np.int64)
        if not self.weighted:
            rows = self._parts[0](indices)
            components = np.searchsorted(self.first, rows, side="right") - 1
            return components, rows - self.first[components]
        components, rows = self.pattern.at(indices)
        for component in np.unique(components).tolist():
            here = components == component
            rows[here] = self._parts[component](rows[here])
        return components, rows


class Pattern:
    """Component and index within it, for global index ``k``, by a table of one period.

    The turns of a period are given out by Tijdeman's rule (of the components whose share allows
    another row by now, the one whose deadline is next), which keeps every component within one row
    of its share at every point.
    """

    def __init__(self, weights: Sequence[float]):
        self.counts = _integer_weights(weights)
        period = sum(self.counts)
        counts, given = np.array(self.counts, np.int64), np.zeros(len(self.counts), np.int64)
        self.turn, self._nth = np.empty(period, np.int64), np.empty(period, np.int64)
        for k in range(period):
            # Eligible: its share after this row exceeds what it was given. Deadline: the row at
            # which the next one falls due.
            eligible = given * period < counts * (k + 1)
            deadline = np.where(eligible, (given + 1) * period / counts, np.inf)
            component = int(np.argmin(deadline))
            self.turn[k], self._nth[k] = component, given[component]
            given[component] += 1

    def at(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Components, and how many rows each has given before."""
        cycle, k = np.divmod(indices, len(self.turn))
        components = self.turn[k]
        return components, cycle * np.array(self.counts)[components] + self._nth[k]


def _endless(size: int, seed: int, shuffle: bool) -> Callable[[np.ndarray], np.ndarray]:
    """From places in an endless sequence of epochs to the row of ``size`` rows that each holds."""
    if not shuffle:
        return lambda places: places % size
    if size <= _TABLE_ROWS:
        return _Tables(size, seed)
    import grain

    # Once leaves neighbours correlated (0.38 at a million rows, where 0.001 is chance); twice does
    # not.
    rows = grain.MapDataset.range(size).shuffle(seed=seed).shuffle(seed=_seed32(seed, -1)).repeat()
    return lambda places: np.array([rows[place] for place in places.tolist()], np.int64)


class _Tables:
    """Shuffled epochs from a table each, a hundred times faster than asking grain for a row.

    The order is the ranking of Philox's raw output, which no version of numpy changes.
    """

    def __init__(self, size: int, seed: int):
        self.size, self.seed = size, seed
        self._tables: dict[int, np.ndarray] = {}

    def __call__(self, places: np.ndarray) -> np.ndarray:
        epochs, within = np.divmod(places, self.size)
        rows = np.empty_like(places)
        for epoch in np.unique(epochs).tolist():
            here = epochs == epoch
            rows[here] = self._table(epoch)[within[here]]
        return rows

    def _table(self, epoch: int) -> np.ndarray:
        table = self._tables.get(epoch)
        if table is None:
            table = np.argsort(
                np.random.Philox(key=[self.seed, epoch]).random_raw(self.size), kind="stable"
            )
            self._tables = {**dict(list(self._tables.items())[-1:]), epoch: table}
        return table


def _check_weights(weights: Sequence[float] | None, components: int) -> None:
    if weights is None:
        return
    if len(weights) != components:
        raise DataError(
            f"{len(weights)} weights {list(weights)} for {components} datasets; give one weight for"
            " each"
        )
    if bad := [w for w in weights if not (w > 0 and math.isfinite(w))]:
        raise DataError(
            f"weight {bad[0]} in {list(weights)}; every weight must be positive: leave the dataset"
            " out instead"
        )


def _integer_weights(weights: Sequence[float]) -> list[int]:
    """Smallest integers in the proportion of the weights, if their sum is at most 10,000; else
    their best rounding to that sum.
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
            f"weight {min(weights)} in {list(weights)} is under 1/{_MAX_PERIOD} of their sum; raise"
            " it or leave the dataset out"
        )
    return [int(n) for n in whole]


def _seed32(seed: int, component: int) -> int:
    """Seeds far apart for neighbouring seeds, components and (since grain adds the epoch to it)
    epochs.
    """
    return int.from_bytes(
        hashlib.blake2b(f"{seed}:{component}".encode(), digest_size=4).digest(), "big"
    )
