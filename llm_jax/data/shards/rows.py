"""Rows of a fixed length, by index, out of a folder of shards."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llm_jax.data.shards.pack import check_divides, cut_rows, rows_to_batch
from llm_jax.data.shards.records import Block
from llm_jax.data.shards.store import ShardReader, check_tokenizer
from llm_jax.types import Batch


class KeptBlocks:
    """Blocks of a reader by (shard, block), the first ones read kept in memory, of ``block_bytes``
    each up to ``cache_bytes``.
    """

    def __init__(self, reader: ShardReader, block_bytes: int, cache_bytes: int):
        self._reader, self._most = reader, cache_bytes // (block_bytes + 512)
        self._kept: dict[tuple[int, int], Any] = {}

    def get(self, keys: Sequence[tuple[int, int]]) -> dict[tuple[int, int], Any]:
        """The blocks of these keys."""
        found = {key: self._kept[key] for key in keys if key in self._kept}
        missing: dict[int, list[int]] = {}
        for shard, block in sorted({key for key in keys if key not in found}):
            missing.setdefault(shard, []).append(block)
        for shard, blocks in missing.items():
            for block, data in zip(blocks, self._reader.read(shard, blocks)):
                found[shard, block] = data
                if len(self._kept) < self._most:
                    self._kept[shard, block] = data
        return found


class StoredRows:
    """Rows of one split by index, shard after shard. rows_of_shards: how many each shard of the
    reader has.
    """

    def __init__(self, reader: ShardReader, rows_of_shards: Sequence[int] | np.ndarray):
        self.reader, self.manifest = reader, reader.manifest
        self._first = np.concatenate([[0], np.cumsum(rows_of_shards)]).astype(np.int64)

    def __len__(self) -> int:
        return int(self._first[-1])

    @property
    def tokens(self) -> int:
        """Tokens in the split, of pairs those that a decoder writes, padding not counted."""
        return int(self.reader.shard_tokens.sum())

    def locate(self, rows: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """The shard of each row, and its place there."""
        rows = np.asarray(rows, np.int64)
        shards = np.searchsorted(self._first, rows, side="right") - 1
        return shards, rows - self._first[shards]


class Rows(StoredRows):
    """The rows of one split of one folder of shards, by index: ``seq_length`` tokens each, none of
    them all padding.

    Args:
        path: folder of shards.
        split: ``"train"`` or ``"validation"``.
        seq_length: T; it must divide the block size.
        cache_bytes: decoded blocks kept in memory; under global shuffling the first ones read are
            as good as any.
        tokenizer_fingerprint: raise DataError if the shards were made with another tokenizer.
        length_name: what an error calls ``seq_length``.
    """

    def __init__(
        self,
        path: str | Path,
        split: str,
        seq_length: int,
        cache_bytes: int = 256 << 20,
        tokenizer_fingerprint: str | None = None,
        length_name: str = "seq_length",
    ):
        reader = ShardReader(path, split)
        check_divides(seq_length, reader.block_size, length_name)
        super().__init__(reader, -(-reader.shard_tokens // seq_length))
        check_tokenizer(path, self.manifest, tokenizer_fingerprint)
        self.seq_length, self.block_size = seq_length, self.reader.block_size
        self._kept = KeptBlocks(
            self.reader, self.reader.dtype.itemsize * (self.block_size + 1), cache_bytes
        )

    def batch(self, rows: Sequence[int]) -> Batch:
        """The given rows, [rows, T]."""
        return rows_to_batch(*self.cut(rows))

    def cut(self, rows: Sequence[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Windows, starts and lengths (see ``pack.cut_rows``) of the given rows."""
        shards, places = self.locate(rows)
        blocks, offsets = np.divmod(places * self.seq_length, self.block_size)
        keys = list(zip(shards.tolist(), blocks.tolist()))
        found: dict[tuple[int, int], Block] = self._kept.get(keys)
        return cut_rows([found[key] for key in keys], offsets.tolist(), self.seq_length)
