"""What a worker process of ``prepare`` does: tokenize one unit of text and write it as a shard."""

from __future__ import annotations

import functools
import itertools
import json
import multiprocessing
import os
import threading
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from llm_jax.data.prepare.stages import EMPTY, TOO_LONG, Drop, DropUnfit
from llm_jax.data.prepare.units import Unit, part_path
from llm_jax.data.shards.pairs import Pair, RowShape, write_pairs
from llm_jax.data.shards.records import token_dtype, write_shard
from llm_jax.files import write_atomic
from llm_jax.storage.paths import path_of
from llm_jax.tokenizers.open_tokenizer import open_tokenizer
from llm_jax.tokenizers.tokenizer import Tokenizer, encoder_ids


class Settings(NamedTuple):
    """What all units have in common.

    Attributes:
        out: the output folder; it holds a copy of the tokenizer.
        tokenizer_fingerprint: of that copy.
        block_size: tokens in a block; of pairs, tokens that a decoder writes in a row.
        add_bos: whether a document begins with ``<s>``.
        add_eos: whether a document ends with ``</s>``.
        encoder_block_size: of pairs, tokens that an encoder reads in a row; 0 for single texts.
    """

    out: str
    tokenizer_fingerprint: str
    block_size: int
    add_bos: bool
    add_eos: bool
    encoder_block_size: int


def start() -> None:
    """Set up a worker process."""
    # There is a process per core already; a tokenizer's threads would compete with the processes.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_exit_after, args=(parent,), daemon=True).start()


def _exit_after(parent: BaseProcess) -> None:
    """Exit when the parent has ended: a worker would wait for ever after its SIGKILL."""
    wait([parent.sentinel])
    os._exit(1)


def write_unit(unit: Unit, settings: Settings) -> dict[str, Any]:
    """Tokenize the documents of a unit, write its shard and then its counts.

    Returns:
        The counts, as written to ``part_path``.
    """
    out = path_of(settings.out)
    tokenizer = _tokenizer(settings.out, settings.tokenizer_fingerprint)
    path = out / unit.file_name
    if settings.encoder_block_size:
        counts = _write_pairs(path, unit.texts, tokenizer, settings)
    else:
        counts = _write_texts(path, [text for (text,) in unit.texts], tokenizer, settings)
    part = {"split": unit.split, "file": path.name, "bytes": path.stat().st_size, **counts}
    write_atomic(part_path(out, unit), json.dumps(part).encode())
    return part


@functools.lru_cache(maxsize=1)
def _tokenizer(out: str, fingerprint: str) -> Tokenizer:
    """The tokenizer of the output folder; another fingerprint is another tokenizer."""
    return open_tokenizer(path_of(out) / "tokenizer")


def _write_texts(
    path: Path, texts: list[str], tokenizer: Tokenizer, settings: Settings
) -> dict[str, Any]:
    stream, starts = token_stream(texts, tokenizer, settings.add_bos, settings.add_eos)
    blocks = write_shard(path, stream, starts, settings.block_size, tokenizer.pad_id)
    return {
        "documents": len(texts),
        "tokens": len(stream),
        "blocks": blocks,
        **_text_counts(texts),
    }


def _write_pairs(
    path: Path, texts: list[tuple[str, ...]], tokenizer: Tokenizer, settings: Settings
) -> dict[str, Any]:
    """``texts``: of each pair, what a decoder writes and what an encoder reads."""
    reads = encoder_ids(tokenizer, [read for _, read in texts])
    writes = tokenizer.encode_batch([write for write, _ in texts])
    stage = DropUnfit(settings.encoder_block_size, settings.block_size)
    pairs: list[Pair] = []
    kept: list[str] = []
    dropped = {EMPTY: 0, TOO_LONG: 0}
    for (text, _), encoder_tokens, tokens in zip(texts, reads, writes):
        outcome = stage(Pair(encoder_tokens, [*tokens, tokenizer.eos_id]))
        if isinstance(outcome, Drop):
            dropped[outcome.rule] += 1
        else:
            pairs.append(outcome)
            kept.append(text)
    shape = RowShape(settings.encoder_block_size, settings.block_size)
    blocks = write_pairs(path, pairs, shape, tokenizer.pad_id, token_dtype(tokenizer.vocab_size))
    return {
        "documents": len(pairs),
        "tokens": sum(len(pair.tokens) for pair in pairs),
        "encoder_tokens": sum(len(pair.encoder_tokens) for pair in pairs),
        "blocks": blocks,
        **_text_counts(kept),
        "dropped": dropped,
    }


def token_stream(
    texts: list[str], tokenizer: Tokenizer, add_bos: bool, add_eos: bool
) -> tuple[np.ndarray, np.ndarray]:
    """The tokens of all documents end to end.

    Args:
        texts: one for each document.
        tokenizer: encodes them.
        add_bos: begin each document with ``<s>``.
        add_eos: end each document with ``</s>``.

    Returns:
        Tokens [n] of the tokenizer's ``token_dtype``, and the offsets [documents] int64 where
        documents begin.
    """
    encoded = tokenizer.encode_bytes(texts)
    before = np.array([tokenizer.bos_id] * add_bos, np.int32).tobytes()
    after = np.array([tokenizer.eos_id] * add_eos, np.int32).tobytes()
    sizes = np.array([len(ids) for ids in encoded], np.int64) + len(before) + len(after)
    lengths = sizes // 4
    joined = b"".join(itertools.chain.from_iterable((before, ids, after) for ids in encoded))
    stream = np.frombuffer(joined, np.int32).astype(token_dtype(tokenizer.vocab_size))
    return stream, np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int64)


def _text_counts(texts: list[str]) -> dict[str, int]:
    return {
        "text_bytes": sum(len(text.encode()) for text in texts),
        "words": sum(len(text.split()) for text in texts),
    }
