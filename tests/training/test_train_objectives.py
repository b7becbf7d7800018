"""Encoders and encoder–decoders through the same trainer: on any mesh and after any stop the same
curve.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from jobs import EXACT, WORDS, write_text
from pairwise import parametrize

from llm_jax.api.load import load
from llm_jax.commands.evaluate import evaluate_run
from llm_jax.commands.generate import generate
from llm_jax.commands.parity import check_run
from llm_jax.config import Config
from llm_jax.config.overrides import override
from llm_jax.data.prepare.pipeline import prepare
from llm_jax.data.prepare.train_tokenizer import train_tokenizer
from llm_jax.training.metrics import read_metrics
from llm_jax.training.run import train
from llm_jax.types import ConfigError

pytestmark = pytest.mark.usefixtures("kept_programs")

STEPS = 4


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """Text and pairs, made with one tokenizer that has a mask and sentinels. A pair's second text
    is its first in capitals.
    """
    folder = tmp_path_factory.mktemp("objectives")
    text = write_text(folder / "text.jsonl", 150, 0)
    rng = np.random.default_rng(1)
    lines = [" ".join(rng.choice(WORDS, int(rng.integers(2, 12)))) for _ in range(2000)]
    (folder / "pairs.jsonl").write_text(
        "".join(json.dumps({"low": line, "high": line.upper()}) + "\n" for line in lines)
    )
    train_tokenizer(
        (str(text),), folder / "tok", vocab_size=400, control_symbols=("<mask>",), sentinels=12
    )
    options = {"block_size": 64, "workers": 1, "validation_fraction": 0.1}
    prepare((str(text),), folder / "tok", folder / "text", **options)
    prepare(
        (str(folder / "pairs.jsonl"),),
        folder / "tok",
        folder / "pairs",
        text_field="high",
        encoder_field="low",
        **options,
    )
    return {"masked": folder / "text", "spans": folder / "text", "pairs": folder / "pairs"}


OF = {
    "masked": {
        "model.causal": False,
        "data.seq_length": 64,
        "model.head.transform": "on",
        "model.head.bias": True,
    },
    "spans": {
        "model.encoder.num_layers": 1,
        "data.seq_length": 32,
        "data.objective.encoder_length": 64,
        "model.positions": "relative",
    },
    "pairs": {
        "model.encoder.num_layers": 1,
        "data.seq_length": 64,
        "data.objective.encoder_length": 64,
        "train.label_smoothing": 0.1,
    },
}


def config(folders, objective: str, out: Path, **more) -> Config:
    values = {
        "model.num_layers": 1,
        "model.embed_dim": 32,
        "model.attention.num_heads": 2,
        "model.mlp.hidden_dim": 64,
        "model.max_length": 64,
        "data.path": (str(folders[objective]),),
        "data.objective": objective,
        "data.batch_size": 8,
        "optimizer.learning_rate": 1e-2,
        "optimizer.schedule": "rsqrt",
        "optimizer.warmup_steps": 2,
        "train.out": str(out),
        "train.steps": STEPS,
        "train.checkpoint_every": 2,
        "train.peak_tflops": 1.0,
    }
    return override(Config(), values | OF[objective] | more)


def curve(folder: Path, names=("loss", "grad_norm", "tokens")) -> list[list[float]]:
    return [
        [record[name] for name in names]
        for record in read_metrics(folder / "metrics.jsonl")
        if record["kind"] == "train"
    ]


@pytest.mark.mesh
@parametrize("objective", [[name] for name in OF], by_default=[["pairs"]])
def test_a_mesh_and_a_stop_change_nothing(folders, objective, tmp_path):
    run = train(config(folders, objective, tmp_path / "one"))
    whole, plain = curve(run, EXACT), curve(run)
    assert len(whole) == STEPS and all(np.isfinite(row[0]) for row in whole)
    shutil.rmtree(run / "checkpoints" / str(STEPS))
    train(config(folders, objective, tmp_path / "one"))
    assert curve(run, EXACT) == whole
    mesh = {"mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2, "train.accumulation": 2}
    mesh |= {"execution.layers": "scan", "execution.remat": "full"}
    np.testing.assert_allclose(
        curve(train(config(folders, objective, tmp_path / "mesh", **mesh))),
        plain,
        rtol=1e-5,
        atol=1e-5,
    )


@pytest.mark.slow
def test_a_model_learns_pairs_and_writes_them(folders, tmp_path, capsys):
    """Five seeds of six wrote 20 such texts of 20 without an error and one 19; all chose at most
    0.4 % of the tokens held out wrongly.
    """
    more = {
        "model.num_layers": 2,
        "train.steps": 400,
        "train.checkpoint_every": 400,
        "train.label_smoothing": 0.0,
        "train.log_every": 400,
        "data.batch_size": 16,
        "optimizer.update": "muon",
        "optimizer.learning_rate": 0.01,
        "optimizer.update.adam_learning_rate": 0.005,
        "optimizer.schedule": "linear",
        "optimizer.warmup_steps": 20,
        "model.positions": "learned",
    }
    run = train(config(folders, "pairs", tmp_path / "run", **more))
    asked = ["the cat sat on a mat", "nine small birds fly", "softly rain fell while saw"]
    asked += [
        json.loads(line)["low"]
        for line in (folders["pairs"].parent / "pairs.jsonl").read_text().splitlines()[:17]
    ]
    said = load(run).generate(asked, max_new_tokens=60, temperature=0.0)
    assert said[:3] == [text.upper() for text in asked[:3]]
    assert sum(text.upper() == answer for text, answer in zip(asked, said, strict=True)) >= 19
    capsys.readouterr()
    # What is in a batch with others of another length is what it is alone.
    for n in (asked.index(min(asked, key=len)), asked.index(max(asked, key=len))):
        generate(run, (asked[n],), temperature=0.0, max_new_tokens=60)
        assert capsys.readouterr().out == said[n] + "\n"
    generate(run, tuple(asked[:2]), temperature=0.0, max_new_tokens=60)
    assert capsys.readouterr().out.splitlines()[:2] == [asked[0], said[0]]
    with pytest.raises(
        ConfigError, match=r"chat \(--chat\) is for decoders alone, .* give a prompt"
    ):
        generate(run, chat="hello")
    told = next(
        r for r in read_metrics(run / "metrics.jsonl") if r["kind"] == "eval" and r["step"] == 400
    )
    shown = evaluate_run(run, folders["pairs"])
    assert "split validation, objective pairs" in shown
    results = json.loads((run / "eval_validation.json").read_text())["model"]
    assert results["loss"] == pytest.approx(told["loss"], rel=1e-5) and results[
        "accuracy"
    ] == pytest.approx(told["accuracy"])
    assert results["accuracy"] > 0.98
    assert check_run(run, length=32) == 0
    with pytest.raises(
        ConfigError,
        match=(
            "context 32 and stride 0 are of windows over texts, and the run's objective is 'pairs'"
        ),
    ):
        evaluate_run(run, folders["pairs"], context=32)


@pytest.mark.parametrize(
    "objective, more, message",
    [
        (
            "masked",
            {"model.causal": True},
            (
                "data.objective is 'masked', .*encoder is .none. and model.causal True; .* from"
                " next_token"
            ),
        ),
        (
            "pairs",
            {"data.objective": "next_token"},
            "data.objective is 'next_token', .* from spans or pairs",
        ),
        (
            "pairs",
            {"data.objective.encoder_length": 0},
            "data.objective.encoder_length is 0; an encoder reads at least 1",
        ),
        (
            "pairs",
            {"data.objective.encoder_length": 65},
            "data.objective.encoder_length 65 is longer than model.max_length 64",
        ),
        (
            "masked",
            {"data.objective.mask_rate": 1.0},
            "data.objective.mask_rate is 1.0; it must be more than 0 and less than 1",
        ),
        (
            "spans",
            {"data.objective.span_length": 0.5},
            "data.objective.span_length is 0.5; it must be at least 1",
        ),
        (
            "masked",
            {"train.label_smoothing": 1.0},
            "train.label_smoothing is 1.0; it must be at least 0 and less than 1",
        ),
    ],
)
def test_what_does_not_fit_is_refused(folders, objective, more, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        train(override(config(folders, objective, tmp_path / "run"), more))
