"""Rows of a fixed length from a folder of shards, by index."""

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
    """Blocks of a reader by (shard, block). The first blocks that are read are kept in memory.

    Args:
        reader: reads the blocks.
        block_bytes: size of a block in memory.
        cache_bytes: memory for the kept blocks.
    """

    def __init__(self, reader: ShardReader, block_bytes: int, cache_bytes: int):
        self._reader = reader
        self._most = cache_bytes // (block_bytes + 512)
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
    """Rows of one split by index, shard after shard.

    Args:
        reader: of the split.
        rows_of_shards: number of rows in each of its shards.
    """

    def __init__(self, reader: ShardReader, rows_of_shards: Sequence[int] | np.ndarray):
        self.reader = reader
        self.manifest = reader.manifest
        self._first = np.concatenate([[0], np.cumsum(rows_of_shards)]).astype(np.int64)

    def __len__(self) -> int:
        return int(self._first[-1])

    @property
    def tokens(self) -> int:
        """Tokens in the split without padding; of pairs, tokens that a decoder writes."""
        return int(self.reader.shard_tokens.sum())

    def locate(self, rows: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The shard of each row, and its index within the shard; both int64 [rows]."""
        indices = np.asarray(rows, np.int64)
        shards = np.searchsorted(self._first, indices, side="right") - 1
        return shards, indices - self._first[shards]


class Rows(StoredRows):
    """The rows of one split of a folder of shards, by index.

    A row has ``seq_length`` tokens, of which one at least is not padding.

    Args:
        path: folder of shards.
        split: ``"train"`` or ``"validation"``.
        seq_length: T, a divisor of the block size.
        cache_bytes: memory for decoded blocks. The first ones read are kept, since under global
            shuffling all are equally likely to be read again.
        tokenizer_fingerprint: of the tokenizer that the shards must be made with; None for any.
        length_name: name of ``seq_length`` in an error.

    Raises:
        DataError: as ``ShardReader``; or another tokenizer, or a length that does not divide the
            block size.
    """

    def __init__(
        self,
        path: str | Path,
        split: str,
        seq_length: int,
        cache_bytes: int = 256 << 20,
        tokenizer_fingerprint: str | None = None,
        *,
        length_name: str = "seq_length",
    ):
        reader = ShardReader(path, split)
        check_divides(seq_length, reader.block_size, length_name)
        super().__init__(reader, -(-reader.shard_tokens // seq_length))
        check_tokenizer(path, self.manifest, tokenizer_fingerprint)
        self.seq_length = seq_length
        self.block_size = self.reader.block_size
        self._kept = KeptBlocks(
            self.reader, self.reader.dtype.itemsize * (self.block_size + 1), cache_bytes
        )

    def batch(self, rows: Sequence[int] | np.ndarray) -> Batch:
        """The given rows, [rows, T]."""
        return rows_to_batch(*self.cut(rows))

    def cut(self, rows: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Windows, starts and lengths of the given rows, as ``pack.cut_rows`` returns them."""
        shards, places = self.locate(rows)
        blocks, offsets = np.divmod(places * self.seq_length, self.block_size)
        keys = list(zip(shards.tolist(), blocks.tolist()))
        found: dict[tuple[int, int], Block] = self._kept.get(keys)
        return cut_rows([found[key] for key in keys], offsets.tolist(), self.seq_length)
