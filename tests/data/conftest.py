"""A small corpus, a tokenizer and shards, made once per test run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from builders import document, write_dataset

from llm_jax.data.prepare.pipeline import prepare
from llm_jax.data.prepare.train_tokenizer import train_tokenizer
from llm_jax.tokenizers.sentencepiece_tokenizer import SentencePieceTokenizer


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    for part in range(4):
        lines = [json.dumps({"text": document(part * 100 + i)}) for i in range(100)]
        (folder / f"part{part}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="session")
def tokenizer(corpus, tmp_path_factory) -> SentencePieceTokenizer:
    return train_tokenizer(
        (str(corpus),), tmp_path_factory.mktemp("tok"), vocab_size=420, user_symbols=("<|user|>",)
    )


@pytest.fixture(scope="session")
def prepared(corpus, tokenizer, tmp_path_factory) -> Path:
    """Shards of the corpus: several files per split, blocks of 64."""
    out = tmp_path_factory.mktemp("shards") / "out"
    prepare(
        (str(corpus),),
        tokenizer.path,
        out,
        block_size=64,
        workers=1,
        shard_bytes=30_000,
        validation_fraction=0.2,
    )
    return out


@pytest.fixture(scope="session")
def counting(tmp_path_factory) -> Path:
    """Three shards, documents of 1 to 40 tokens, every token id different; blocks of 32."""
    rng = np.random.default_rng(0)
    lengths = [rng.integers(1, 41, n).tolist() for n in (60, 45, 7)]
    return write_dataset(tmp_path_factory.mktemp("counting"), lengths, 32)
