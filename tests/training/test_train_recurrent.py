"""Recurrent layers through the trainer: a run learns more than pairs of tokens, goes on exactly
after a stop, and is evaluated.
"""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from jobs import EXACT

from llm_jax.commands.evaluate import evaluate_run
from llm_jax.commands.parity import check_run
from llm_jax.config import Config
from llm_jax.config.overrides import override
from llm_jax.data.prepare.pipeline import prepare
from llm_jax.data.prepare.train_tokenizer import train_tokenizer
from llm_jax.training.metrics import read_metrics
from llm_jax.training.run import train

pytestmark = pytest.mark.usefixtures("one_device")

STEPS = 30


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Text whose words follow from the two before: a pair says little of the next."""
    folder = tmp_path_factory.mktemp("recurrent")
    rng = np.random.default_rng(0)
    letters = "bcdfghjk"
    following = rng.permuted(np.tile(np.arange(8), (8, 1)), axis=1)
    with (folder / "text.jsonl").open("w") as file:
        for _ in range(400):
            first, second = rng.integers(0, 8, 2)
            words = []
            for _ in range(30):
                first, second = second, following[first, second]
                words.append(letters[first])
            file.write(json.dumps({"text": " ".join(words)}) + "\n")
    text = str(folder / "text.jsonl")
    train_tokenizer((text,), folder / "tokenizer", vocab_size=276)
    prepare(
        (text,),
        folder / "tokenizer",
        folder / "shards",
        block_size=64,
        workers=1,
        validation_fraction=0.1,
    )
    return folder / "shards"


def config(shards, out) -> Config:
    settings = {
        "model.recurrent": "lstm",
        "model.num_layers": 1,
        "model.embed_dim": 24,
        "model.init_std": 0.1,
        "model.max_length": 64,
        "data.path": (str(shards),),
        "data.seq_length": 32,
        "data.batch_size": 16,
        "optimizer.learning_rate": 0.02,
        "optimizer.schedule": "constant",
        "optimizer.warmup_steps": 4,
        "optimizer.weight_decay": 0.0,
        "train.steps": STEPS,
        "train.eval_batches": 1,
        "train.checkpoint_every": STEPS // 2,
        "train.keep": 5,
        "train.out": str(out),
    }
    return override(Config(), settings, "test")


@pytest.fixture(scope="module")
def run(shards, one_device, tmp_path_factory):
    return train(config(shards, tmp_path_factory.mktemp("run") / "whole"))


def test_it_knows_more_than_pairs_of_tokens(run, shards):
    evaluate_run(run, shards)
    scores = json.loads((run / "eval_validation.json").read_text())
    assert scores["model"]["perplexity"] < 0.5 * scores["bigram"]["perplexity"]


def curve(folder):
    records = read_metrics(folder / "metrics.jsonl")
    return [[r[name] for name in EXACT] for r in records if r["kind"] == "train"]


def test_a_run_goes_on_exactly_after_a_stop(run, shards):
    whole = curve(run)
    shutil.rmtree(run / "checkpoints" / str(STEPS))
    train(config(shards, run))
    assert len(whole) == STEPS and curve(run) == whole


def test_cached_steps_of_a_run_are_its_full_passes(run):
    assert check_run(run, length=16) == 0
