"""What a worker process of ``prepare`` does: tokenise one unit of text and write it as
one shard.
"""

from __future__ import annotations

import itertools
import json
import os
import threading
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from llm_jax.data.shards.pairs import write_pairs
from llm_jax.data.shards.records import token_dtype, write_shard
from llm_jax.data.shards.store import shard_name
from llm_jax.files import write_atomic
from llm_jax.tokenizers.open_tokenizer import open_tokenizer
from llm_jax.tokenizers.tokenizer import Tokenizer


class Settings(NamedTuple):
    """What all units have in common; ``out`` holds the tokenizer too."""

    out: str
    block_size: int
    add_bos: bool
    add_eos: bool
    encoder_block_size: int
    """0 where texts are single, not pairs."""


_settings: Settings | None = None
_tokenizers: dict[str, Tokenizer] = {}


def start(settings: Settings) -> None:
    """Set up a worker process."""
    import multiprocessing
    from multiprocessing.connection import wait

    global _settings
    _settings = settings
    # The processes share the cores out already; threads of a tokenizer beside them would only wait
    # for each other.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    parent = multiprocessing.parent_process()
    # A pool's worker outlives a parent killed by SIGKILL and would wait for ever.
    threading.Thread(target=lambda: (wait([parent.sentinel]), os._exit(1)), daemon=True).start()


def write_unit(
    split: str, index: int, texts: list[tuple[str, ...]], settings: Settings | None = None
) -> dict[str, Any]:
    """Tokenise the documents, each one text or a pair, write the shard and then its counts; returns
    the counts.
    """
    settings = settings or _settings
    out = Path(settings.out)
    if settings.out not in _tokenizers:
        _tokenizers[settings.out] = open_tokenizer(out / "tokenizer")
    tokenizer, path = _tokenizers[settings.out], out / shard_name(split, index)
    if settings.encoder_block_size:
        counts = write_pairs(
            path, texts, tokenizer, settings.block_size, settings.encoder_block_size
        )
    else:
        counts = _write_texts(path, [text for (text,) in texts], tokenizer, settings)
    part = {"split": split, "file": path.name, **counts}
    write_atomic(out / "parts" / f"{path.name}.json", json.dumps(part).encode())
    return part


def _write_texts(
    path: Path, texts: list[str], tokenizer: Tokenizer, settings: Settings
) -> dict[str, Any]:
    stream, starts = token_stream(texts, tokenizer, settings.add_bos, settings.add_eos)
    blocks = write_shard(path, stream, starts, settings.block_size, tokenizer.pad_id)
    return {
        "bytes": path.stat().st_size,
        "documents": len(texts),
        "tokens": len(stream),
        "blocks": blocks,
        "text_bytes": sum(len(text.encode()) for text in texts),
        "words": sum(len(text.split()) for text in texts),
    }


def token_stream(
    texts: list[str], tokenizer: Tokenizer, add_bos: bool, add_eos: bool
) -> tuple[np.ndarray, np.ndarray]:
    """All documents end to end: tokens [n] and the offsets [documents] where they begin."""
    encoded = tokenizer.encode_bytes(texts)
    before, after = (
        np.array([id] * flag, np.int32).tobytes()
        for id, flag in ((tokenizer.bos_id, add_bos), (tokenizer.eos_id, add_eos))
    )
    lengths = (np.array([len(ids) for ids in encoded], np.int64) + len(before) + len(after)) // 4
    joined = b"".join(itertools.chain.from_iterable((before, ids, after) for ids in encoded))
    stream = np.frombuffer(joined, np.int32).astype(token_dtype(tokenizer.vocab_size))
    return stream, np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int64)
