"""The part of an objective that the loader runs: which rows it reads, and how they become a batch.

This floor never imports jax. The objectives themselves are one floor above, in
``llm_jax.objectives``, and are passed to the loader.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from llm_jax.data.examples.folder import ExampleRows
from llm_jax.data.shards.pairs import PairRows
from llm_jax.data.shards.rows import Rows
from llm_jax.types import Batch


class RowTransform(Protocol):
    """Rows of a folder of shards, and the batches made of them. A pure function of the rows and of
    their numbers in the run.
    """

    def open(
        self,
        path: str | Path,
        split: str,
        seq_length: int,
        cache_bytes: int,
        fingerprint: str | None,
    ) -> Rows | PairRows | ExampleRows:
        """The rows that batches are made of.

        Args:
            path: folder of shards.
            split: ``"train"`` or ``"validation"``.
            seq_length: T of the batches.
            cache_bytes: decoded blocks kept in memory.
            fingerprint: of the tokenizer in use, see ``shards.check_tokenizer``.
        """

    def __call__(self, batch: Batch, indices: np.ndarray, seq_length: int) -> Batch:
        """The batch that the model gets.

        Args:
            batch: the rows as they are stored.
            indices: int [B], the number of each row in the run.
            seq_length: T of the batches.
        """


class AsStored(NamedTuple):
    """Rows of text as they are stored: the target of each token is the one that follows it."""

    def open(
        self,
        path: str | Path,
        split: str,
        seq_length: int,
        cache_bytes: int,
        fingerprint: str | None,
    ) -> Rows:
        return Rows(path, split, seq_length, cache_bytes, fingerprint)

    def __call__(self, batch: Batch, indices: np.ndarray, seq_length: int) -> Batch:
        return batch


AS_STORED = AsStored()
