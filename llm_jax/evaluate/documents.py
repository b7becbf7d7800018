"""The documents of a folder of shards, put together again from its blocks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np


def documents(path: str | Path, split: str) -> Iterator[np.ndarray]:
    """Token ids (int32) of every document of a split, in stored order, with the ``<s>`` and ``</s>`` they were stored with."""
    from llm_jax.data.shards import ShardReader

    reader = ShardReader(path, split)
    try:
        for shard, total in enumerate(reader.shard_tokens.tolist()):
            pieces: list[np.ndarray] = []
            for first in range(0, -(-total // reader.block_size), 256):
                last = min(first + 256, -(-total // reader.block_size))
                for block in reader.read(shard, list(range(first, last))):
                    # The last token of a block is the first of the next one, kept there as its target.
                    length = min(block.length, reader.block_size)
                    parts = np.split(block.tokens[:length].astype(np.int32), block.starts[block.starts < length])
                    for i, part in enumerate(parts):
                        if i > 0 and sum(map(len, pieces)):
                            yield np.concatenate(pieces)
                            pieces = []
                        pieces.append(part)
            if sum(map(len, pieces)):
                yield np.concatenate(pieces)
    finally:
        reader.close()
