"""Made-up text, and shards in which every token says where it is from."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from words import WORDS

from llm_jax.data.shards import records, store

MORE_WORDS = [*WORDS, "down", "near", "old", "stone", "walls"]


def document(number: int) -> str:
    """Deterministic prose of 5 to 120 words, different for every number."""
    rng = np.random.default_rng(number)
    words = rng.choice(MORE_WORDS, int(rng.integers(5, 120)))
    return f"Story {number}\n\n" + " ".join(words) + ".\n    indented é ü 日本\n"


def write_dataset(
    folder: Path,
    lengths_of_shards: list[list[int]],
    block_size: int,
    vocab_size: int = 30_000,
    first_token: int = 10,
) -> Path:
    """Shards of documents of the given lengths whose tokens count up from ``first_token`` over the
    whole dataset.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files, token = [], first_token
    for index, lengths in enumerate(lengths_of_shards):
        total = sum(lengths)
        stream = np.arange(token, token + total).astype(records.token_dtype(vocab_size))
        starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
        path = folder / store.shard_name("train", index)
        blocks = records.write_shard(path, stream, starts, block_size, 0)
        files.append(
            {
                "file": path.name,
                "bytes": path.stat().st_size,
                "tokens": total,
                "blocks": blocks,
                "documents": len(lengths),
            }
        )
        token += total
    manifest = {
        "format_version": 1,
        "block_size": block_size,
        "tokenizer": {"fingerprint": "f" * 64, "vocab_size": vocab_size, "special_ids": {"pad": 0}},
        "shards": {"train": files, "validation": []},
    }
    (folder / store.MANIFEST).write_text(json.dumps(manifest))
    return folder
