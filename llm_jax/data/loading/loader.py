"""Loader: shards in, packed batches out. The global batch is a pure function of ``(seed, step)``.

Row ``r`` of step ``s`` is global row ``s * batch_size + r`` of an endless order (``mixture``). A
host asks for the rows that its devices need, which may be any of them. Nothing else enters, so a
run goes on from its step alone, on any number of hosts.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from llm_jax.data.examples.folder import ExampleRows
from llm_jax.data.loading.fingerprints import row_fingerprints
from llm_jax.data.loading.leaves import map_leaves
from llm_jax.data.loading.mixture import IndexShuffle
from llm_jax.data.loading.prefetch import Prefetched
from llm_jax.data.loading.transform import AS_STORED, RowTransform
from llm_jax.data.shards.pairs import PairRows
from llm_jax.data.shards.rows import Rows
from llm_jax.data.shards.store import shards_fingerprint
from llm_jax.types import Batch, DataError


class Loader:
    """Batches for training, from one or several folders of shards.

    Args:
        paths: folders of shards.
        split: ``"train"`` or ``"validation"``.
        seq_length: T, for most objectives a divisor of the block size.
        batch_size: rows of the global batch.
        seed: decides the order.
        transform: makes batches of rows; the host part of the objective.
        weights: share of rows of each path; None takes every row of every path once per epoch.
        rows: which rows of every global batch this loader gives, ascending; None for all.
        shuffle: False takes the rows as they are stored.
        prefetch: batches made ahead by a thread of ``iterate``; 0 for none and no thread.
        tokenizer_fingerprint: of the tokenizer this run uses; checked against the shards.
        cache_bytes: decoded blocks kept in memory per path.

    Raises:
        DataError: a missing or damaged folder, a tokenizer that does not match, sizes that do not
            divide, bad weights.
    """

    def __init__(
        self,
        paths: Sequence[str | Path],
        *,
        split: str = "train",
        seq_length: int,
        batch_size: int,
        seed: int,
        transform: RowTransform = AS_STORED,
        weights: Sequence[float] | None = None,
        rows: Sequence[int] | None = None,
        shuffle: bool = True,
        prefetch: int = 2,
        tokenizer_fingerprint: str | None = None,
        cache_bytes: int = 256 << 20,
    ):
        if isinstance(paths, str | os.PathLike) or not paths:
            raise DataError(f"paths={paths!r}; give a sequence of at least one folder of shards")
        self.rows = _rows(batch_size, rows)
        if prefetch < 0:
            raise DataError(f"prefetch={prefetch}; it must be 0 or more")
        self.seq_length = seq_length
        self.batch_size = batch_size
        self.seed = seed
        self.prefetch = prefetch
        self.transform = transform
        self.components = [
            transform.open(path, split, seq_length, cache_bytes, tokenizer_fingerprint)
            for path in paths
        ]
        _check_same_tokenizer(paths, self.components)
        self.order = IndexShuffle(
            [len(component) for component in self.components], weights, seed, shuffle
        )

    @property
    def manifest(self) -> dict:
        """The manifest of the first path."""
        return self.components[0].manifest

    @property
    def fingerprints(self) -> list[str]:
        """The ``shards_fingerprint`` of each path."""
        return [shards_fingerprint(component.manifest) for component in self.components]

    @property
    def vocab_size(self) -> int:
        """Size of the vocabulary that the shards were made with."""
        return self.manifest["tokenizer"]["vocab_size"]

    @property
    def epoch_rows(self) -> int:
        """Rows of an epoch; with weights, rows until every component has been seen in full."""
        return self.order.epoch_rows

    @property
    def steps_per_epoch(self) -> int:
        """Steps until an epoch is complete; the last may hold the first rows of the next."""
        return -(-self.epoch_rows // self.batch_size)

    @property
    def epoch_tokens(self) -> int:
        """Tokens of all components together, padding not counted."""
        return sum(rows.tokens for rows in self.components)

    @property
    def stored_rows(self) -> int:
        """Rows of all components together."""
        return sum(map(len, self.components))

    def indices(self, step: int) -> np.ndarray:
        """Global indices of this loader's rows of the step's batch, int64 [rows]."""
        return step * self.batch_size + self.rows

    def batch(self, step: int) -> Batch:
        """This loader's rows [rows, T] of the global batch of a step ≥ 0."""
        if step < 0:
            raise DataError(f"step={step}; steps count from 0")
        indices = self.indices(step)
        components, rows = self.order.rows_at(indices)
        places = [np.flatnonzero(components == component) for component in np.unique(components)]
        parts = [self.components[components[at[0]]].batch(rows[at]) for at in places]
        stored = parts[0] if len(parts) == 1 else _joined(parts, np.concatenate(places))
        return self.transform(stored, indices, self.seq_length)

    def iterate(self, start_step: int = 0) -> Iterator[tuple[int, Batch, np.ndarray]]:
        """Endless ``(step, batch, row_fingerprints)`` from a step on, made ahead in a background
        thread.

        An error while loading is raised here, at the step it belongs to. Close the iterator (or
        drop it) to end the thread.
        """

        def make(step: int) -> tuple[int, Batch, np.ndarray]:
            batch = self.batch(step)
            return step, batch, row_fingerprints(batch, self.indices(step))

        if start_step < 0:
            raise DataError(f"start_step={start_step}; steps count from 0")
        return Prefetched(make, start_step, self.prefetch)

    def close(self) -> None:
        """Close all files."""
        for rows in self.components:
            rows.reader.close()


def evaluation_batches(
    path: str | Path,
    *,
    split: str = "validation",
    seq_length: int,
    batch_size: int,
    transform: RowTransform = AS_STORED,
    rows: Sequence[int] | None = None,
    limit: int | None = None,
    tokenizer_fingerprint: str | None = None,
) -> Iterator[Batch]:
    """Every row of a split exactly once, in stored order; the same number of batches on every host.

    The last batch is filled up with empty rows (segment 0, loss_mask False), which count for
    nothing.

    Args:
        path: folder of shards.
        split: ``"train"`` or ``"validation"``.
        seq_length: T, a divisor of the block size.
        batch_size: rows of the global batch.
        transform: makes batches of rows, the same ones at every evaluation.
        rows: which rows of each batch to give, ascending; None for all.
        limit: at most this many batches; None for all.
        tokenizer_fingerprint: of the tokenizer in use; checked against the shards.
    """
    own = _rows(batch_size, rows)
    stored = transform.open(path, split, seq_length, 0, tokenizer_fingerprint)
    batches = -(-len(stored) // batch_size)

    def generate() -> Iterator[Batch]:
        for step in range(batches if limit is None else min(limit, batches)):
            wanted = step * batch_size + own
            present = wanted[wanted < len(stored)]
            # Row 0 gives the shapes of a batch without rows of its own.
            batch = stored.batch(present if len(present) else [0])
            if len(present) < len(own):
                batch = _filled_up(batch, len(present), len(own))
            yield transform(batch, wanted, seq_length)

    return generate()


def _joined(parts: list[Batch], places: np.ndarray) -> Batch:
    """One batch of several parts: row n of the concatenated parts goes to ``places[n]``."""
    order = np.argsort(places)
    return map_leaves(lambda *arrays: np.concatenate(arrays)[order], *parts)


def _filled_up(batch: Batch, real: int, rows: int) -> Batch:
    """The first ``real`` rows, and zeros up to ``rows``."""

    def fill(x: np.ndarray) -> np.ndarray:
        return np.concatenate([x[:real], np.zeros((rows - real, *x.shape[1:]), x.dtype)])

    return map_leaves(fill, batch)


def _rows(batch_size: int, rows: Sequence[int] | None) -> np.ndarray:
    if batch_size < 1:
        raise DataError(f"batch_size={batch_size}; it must be at least 1")
    if rows is None:
        return np.arange(batch_size)
    chosen = np.asarray(rows, np.int64)
    inside = len(chosen) > 0 and chosen[0] >= 0 and chosen[-1] < batch_size
    if not inside or (np.diff(chosen) < 1).any():
        raise DataError(
            f"rows={chosen.tolist()} of batch_size={batch_size}; give ascending numbers from 0 to"
            f" {batch_size - 1}"
        )
    return chosen


def _check_same_tokenizer(
    paths: Sequence[str | Path], components: list[Rows | PairRows | ExampleRows]
) -> None:
    fingerprints = [rows.manifest["tokenizer"]["fingerprint"] for rows in components]
    first = fingerprints[0]
    for path, other in zip(paths, fingerprints):
        if other != first:
            raise DataError(
                f"data {str(paths[0])!r} and {str(path)!r} were made with different tokenizers"
                f" ({first[:16]}… and {other[:16]}…); prepare them with the same one"
            )
