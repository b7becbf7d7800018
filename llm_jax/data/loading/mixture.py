"""The order of rows: which row of which dataset is global row ``g``, as a function of the seed."""

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
    """Maps the indices of an endless sequence of rows to rows of the components.

    Every component is read in epochs, each with an order of its own: an epoch has each row of the
    component exactly once.

    Without weights, the components are one dataset that is shuffled as a whole, and an epoch of it
    is an epoch of each. With weights, the components alternate in a fixed pattern: of any number of
    rows from the start, each component has its share to within one row.

    Args:
        rows: rows of each component.
        weights: relative share of each component's rows; exact if the weights have a common
            denominator up to 10,000, else rounded to one part in 10,000 (``proportions`` has the
            shares in use).
        seed: any integer.
        shuffle: False takes the rows in stored order.

    Raises:
        DataError: another number of weights than components, a weight that is not positive or too
            small, a component that is empty or too large.
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
        if weights is not None and self.weighted:
            self.pattern = Pattern(weights)
            self.proportions = [c / len(self.pattern.turn) for c in self.pattern.counts]
        else:
            self.proportions = [n / self.first[-1] for n in self.rows]

    @property
    def epoch_rows(self) -> int:
        """Rows of an epoch: every row once; with weights, until every component is complete."""
        if not self.weighted:
            return int(self.first[-1])
        return max(math.ceil(n / p) for n, p in zip(self.rows, self.proportions))

    def rows_at(self, indices: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The component of each global row index ≥ 0, and the row within it; int64 [indices]."""
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
    """The component of global index ``k`` and the index within it, from a table of one period.

    Turns are assigned by Tijdeman's rule: of the components whose share allows another row by now,
    the one with the next deadline. It keeps every component within one row of its share.

    Args:
        weights: relative share of each component.
    """

    def __init__(self, weights: Sequence[float]):
        self.counts = _integer_weights(weights)
        period = sum(self.counts)
        counts = np.array(self.counts, np.int64)
        given = np.zeros(len(self.counts), np.int64)
        self.turn = np.empty(period, np.int64)
        self._nth = np.empty(period, np.int64)
        for k in range(period):
            # A component is eligible if its share after this row exceeds the rows that it has been
            # given. Its deadline is the row by which its next one is due.
            eligible = given * period < counts * (k + 1)
            deadline = np.where(eligible, (given + 1) * period / counts, np.inf)
            component = int(np.argmin(deadline))
            self.turn[k] = component
            self._nth[k] = given[component]
            given[component] += 1

    def at(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The component of each index, and the number of its rows before; both int64 [indices]."""
        cycle, k = np.divmod(indices, len(self.turn))
        components = self.turn[k]
        return components, cycle * np.array(self.counts)[components] + self._nth[k]


def _endless(size: int, seed: int, shuffle: bool) -> Callable[[np.ndarray], np.ndarray]:
    """Maps places in an endless sequence of epochs to rows below ``size``."""
    if not shuffle:
        return lambda places: places % size
    if size <= _TABLE_ROWS:
        return _Tables(size, seed)
    import grain

    # One shuffle leaves neighbours correlated (0.38 at a million rows, where 0.001 is chance); two
    # do not.
    rows = grain.MapDataset.range(size).shuffle(seed=seed).shuffle(seed=_seed32(seed, -1)).repeat()
    return lambda places: np.array([rows[place] for place in places.tolist()], np.int64)


class _Tables:
    """Shuffled epochs, each from a table: a hundred times faster than grain for each row.

    The order is the ranking of Philox's raw output, which is the same in every version of numpy.
    """

    def __init__(self, size: int, seed: int):
        self.size = size
        self.seed = seed
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
    bad = [weight for weight in weights if not (weight > 0 and math.isfinite(weight))]
    if bad:
        raise DataError(
            f"weight {bad[0]} in {list(weights)}; every weight must be positive: leave the dataset"
            " out instead"
        )


def _integer_weights(weights: Sequence[float]) -> list[int]:
    """The smallest integers in proportion to the weights.

    If their sum would exceed 10,000, the weights rounded to integers of that sum.
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
    """A 32-bit seed; those of neighbouring seeds and components are far apart.

    grain adds the number of the epoch to it, so seeds close to each other would repeat orders.
    """
    digest = hashlib.blake2b(f"{seed}:{component}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big")
