"""The documents of a folder of shards, put together again from its blocks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from llm_jax.tokenizers.tokenizer import Tokenizer


def documents(path: str | Path, split: str) -> Iterator[np.ndarray]:
    """Token ids (int32) of every document of a split, in stored order, with the ``<s>`` and
    ``</s>`` they were stored with.
    """
    from llm_jax.data.shards.store import ShardReader

    reader = ShardReader(path, split)
    try:
        for shard, total in enumerate(reader.shard_tokens.tolist()):
            pieces: list[np.ndarray] = []
            for first in range(0, -(-total // reader.block_size), 256):
                last = min(first + 256, -(-total // reader.block_size))
                for block in reader.read(shard, list(range(first, last))):
                    # The last token of a block is the first of the next one, kept there as its
                    # target.
                    length = min(block.length, reader.block_size)
                    parts = np.split(
                        block.tokens[:length].astype(np.int32), block.starts[block.starts < length]
                    )
                    for i, part in enumerate(parts):
                        if i > 0 and sum(map(len, pieces)):
                            yield np.concatenate(pieces)
                            pieces = []
                        pieces.append(part)
            if sum(map(len, pieces)):
                yield np.concatenate(pieces)
    finally:
        reader.close()


def unscored_text(documents: Iterable[np.ndarray], tokenizer: Tokenizer) -> tuple[int, int]:
    """Words and bytes of text that are lost where each document's first token is not scored.

    A word that begins in the first token and goes on in the second still counts.
    """
    from llm_jax.tokenizers.tokenizer import continuation

    words = size = 0
    for document in documents:
        if len(document):
            whole = tokenizer.decode(document)
            scored = continuation(tokenizer, document[:1], document[1:])
            words += len(whole.split()) - len(scored.split())
            size += len(whole.encode()) - len(scored.encode())
    return words, size
