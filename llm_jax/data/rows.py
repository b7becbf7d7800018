"""Rows of a fixed length, by index, out of a folder of shards."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from llm_jax.data.pack import check_divides, cut_rows, rows_to_batch
from llm_jax.data.records import Block
from llm_jax.data.shards import ShardReader, check_tokenizer
from llm_jax.types import Batch


class Rows:
    """The rows of one split of one folder of shards, by index: ``seq_length`` tokens each, none of them all padding.

    Args:
        path: folder of shards.
        split: ``"train"`` or ``"validation"``.
        seq_length: T; it must divide the block size.
        cache_bytes: decoded blocks kept in memory; under global shuffling the first ones read are as good as any.
        tokenizer_fingerprint: raise DataError if the shards were made with another tokenizer.
    """

    def __init__(
        self,
        path: str | Path,
        split: str,
        seq_length: int,
        cache_bytes: int = 256 << 20,
        tokenizer_fingerprint: str | None = None,
    ):
        self.reader = ShardReader(path, split)
        self.manifest = self.reader.manifest
        check_divides(seq_length, self.reader.block_size)
        check_tokenizer(path, self.manifest, tokenizer_fingerprint)
        self.seq_length, self.block_size = seq_length, self.reader.block_size
        self._first = np.concatenate([[0], np.cumsum(-(-self.reader.shard_tokens // seq_length))])
        self._cache: dict[tuple[int, int], Block] = {}
        block_bytes = self.reader.dtype.itemsize * (self.block_size + 1) + 512
        self._cache_blocks = cache_bytes // block_bytes

    def __len__(self) -> int:
        return int(self._first[-1])

    @property
    def tokens(self) -> int:
        """Tokens in the split, padding not counted."""
        return int(self.reader.shard_tokens.sum())

    def batch(self, rows: Sequence[int]) -> Batch:
        """The given rows, [rows, T]."""
        return rows_to_batch(*self.cut(rows))

    def cut(self, rows: Sequence[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Windows, starts and lengths (see ``pack.cut_rows``) of the given rows."""
        rows = np.asarray(rows, np.int64)
        shards = np.searchsorted(self._first, rows, side="right") - 1
        blocks, offsets = np.divmod((rows - self._first[shards]) * self.seq_length, self.block_size)
        keys = list(zip(shards.tolist(), blocks.tolist()))
        found = self._blocks(keys)
        return cut_rows([found[key] for key in keys], offsets.tolist(), self.seq_length)

    def _blocks(self, keys: list[tuple[int, int]]) -> dict[tuple[int, int], Block]:
        found = {key: self._cache[key] for key in keys if key in self._cache}
        missing: dict[int, list[int]] = {}
        for shard, block in sorted({key for key in keys if key not in found}):
            missing.setdefault(shard, []).append(block)
        for shard, blocks in missing.items():
            for block, data in zip(blocks, self.reader.read(shard, blocks)):
                found[shard, block] = data
                if len(self._cache) < self._cache_blocks:
                    self._cache[shard, block] = data
        return found
