"""Reads whole documents from a folder of shards."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from llm_jax.data.shards.store import ShardReader
    from llm_jax.tokenizers.tokenizer import Tokenizer


_BLOCKS_READ = 256


def documents(path: str | Path, split: str) -> Iterator[np.ndarray]:
    """Token ids (int32) of every document of a split, in stored order.

    Documents keep the ``<s>`` and ``</s>`` with which they were stored.
    """
    from llm_jax.data.shards.store import ShardReader

    reader = ShardReader(path, split)
    try:
        for shard, tokens in enumerate(reader.shard_tokens.tolist()):
            pieces: list[np.ndarray] = []
            for starts_document, part in _parts(reader, shard, tokens):
                if starts_document and _has_tokens(pieces):
                    yield np.concatenate(pieces)
                    pieces = []
                pieces.append(part)
            if _has_tokens(pieces):
                yield np.concatenate(pieces)
    finally:
        reader.close()


def _has_tokens(pieces: list[np.ndarray]) -> bool:
    return any(len(piece) for piece in pieces)


def _parts(reader: ShardReader, shard: int, tokens: int) -> Iterator[tuple[bool, np.ndarray]]:
    """The parts of documents in a shard's blocks, and whether each starts a document."""
    blocks = -(-tokens // reader.block_size)
    for first in range(0, blocks, _BLOCKS_READ):
        last = min(first + _BLOCKS_READ, blocks)
        for block in reader.read(shard, list(range(first, last))):
            # The last token of a block is the first of the next one, stored there as its target.
            length = min(block.length, reader.block_size)
            ids = block.tokens[:length].astype(np.int32)
            for i, part in enumerate(np.split(ids, block.starts[block.starts < length])):
                yield i > 0, part


def unscored_text(documents: Iterable[np.ndarray], tokenizer: Tokenizer) -> tuple[int, int]:
    """Words and bytes of text that are lost because each document's first token is not scored.

    A word that begins in the first token and continues in the second counts as scored.
    """
    from llm_jax.tokenizers.tokenizer import continuation

    words = 0
    size = 0
    for document in documents:
        if len(document):
            whole = tokenizer.decode(document)
            scored = continuation(tokenizer, document[:1], document[1:])
            words += len(whole.split()) - len(scored.split())
            size += len(whole.encode()) - len(scored.encode())
    return words, size


def scored_text(row: Sequence[int] | np.ndarray, tokenizer: Tokenizer) -> tuple[int, int]:
    """Words and bytes of the text of a row's tokens that something predicts: all of it after a
    token that is no text, such as ``<s>``, and otherwise without the first token.
    """
    text = tokenizer.decode(row)
    words = len(text.split())
    size = len(text.encode())
    if len(row) and not tokenizer.is_control(int(row[0])):
        lost_words, lost_bytes = unscored_text([np.asarray(row)], tokenizer)
        words -= lost_words
        size -= lost_bytes
    return words, size
