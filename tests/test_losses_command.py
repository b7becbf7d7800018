"""``llm-jax eval --losses``: a line for each document, whose sums are the perplexity."""

from __future__ import annotations

import json
import math

import jax
import numpy as np
import pytest
from small_model import save_small_model

import llm_jax
from llm_jax.cli import main

TEXTS = [
    "The first text is short.",
    "é",
    "A text that is much longer. " * 12 + "End.",
    "Olá, você aí: 安全",
]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("losses")
    run = save_small_model(folder, max_length=64)
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in TEXTS))
    source = (str(folder / "text.jsonl"),)
    for name, add_bos in (("bos", True), ("plain", False)):
        llm_jax.prepare(
            source,
            run / "tokenizer",
            folder / name,
            validation_fraction=0.0,
            block_size=64,
            add_bos=add_bos,
        )
    return run, folder


@pytest.mark.parametrize("name", ["bos", "plain"])
def test_sums_of_the_lines_are_the_perplexity(made, tmp_path, capsys, name):
    run, folder = made
    data = ["--data", str(folder / name), "--split", "train", "--context", "32", "--stride", "8"]
    out = tmp_path / "losses.jsonl"
    words = [*data, "--batch-size", "3", "--losses", str(out), "--token-losses"]
    assert main(["eval", str(run), *words]) == 0
    shown = capsys.readouterr().out
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    found = llm_jax.evaluate(run, folder / name, "train", context=32, stride=8, baselines=False)[
        "model"
    ]
    assert sum(line["tokens"] for line in lines) == found["tokens"]
    assert sum(line["bytes"] for line in lines) == found["bytes"]
    nats = sum(line["loss"] for line in lines)
    assert nats / found["tokens"] == pytest.approx(found["loss"], rel=1e-6)
    kept = json.loads((run / "losses_train.json").read_text())
    assert kept["model"] == pytest.approx(found, rel=1e-5)
    assert kept["loss"]["low"] <= kept["loss"]["value"] <= kept["loss"]["high"]
    assert f"{found['tokens']:,} tokens" in shown and str(out) in shown

    # Documents are stored in an order of their own.
    assert [line["document"] for line in lines] == [0, 1, 2, 3]
    tokenizer = llm_jax.load(run).tokenizer
    ids = {text: tokenizer.encode(text) for text in TEXTS}
    scored = {text: of if name == "bos" else of[1:] for text, of in ids.items()}
    by_ids = {tuple(of): text for text, of in scored.items()}
    assert sorted(by_ids) == sorted(tuple(line["token_ids"]) for line in lines)
    for line in lines:
        assert sum(line["token_losses"]) == pytest.approx(line["loss"], rel=1e-6)
        assert len(line["token_losses"]) == len(line["token_texts"]) == line["tokens"]
        text = by_ids[tuple(line["token_ids"])]
        spelt = "".join(line["token_texts"])
        assert text == spelt if name == "bos" else text.endswith(spelt)


def test_a_loss_is_that_of_the_full_forward_pass_and_of_any_batch_size(made, tmp_path):
    run, folder = made
    rows = []
    for size in ("1", "4"):
        out = tmp_path / "losses.jsonl"
        words = ["--data", str(folder / "bos"), "--split", "train", "--batch-size", size]
        words += ["--context", "64", "--token-losses"]
        assert main(["eval", str(run), *words, "--losses", str(out)]) == 0
        rows.append([json.loads(line) for line in out.read_text().splitlines()])
    for one, other in zip(*rows, strict=True):
        assert one["token_losses"] == pytest.approx(other["token_losses"], abs=1e-5)
    lm = llm_jax.load(run)
    short = next(line for line in rows[0] if 1 < line["tokens"] < 40)
    logits = lm.logits([lm.tokenizer.bos_id, *short["token_ids"]])
    logprobs = np.asarray(jax.nn.log_softmax(logits))
    by_hand = [-logprobs[at, id] for at, id in enumerate(short["token_ids"])]
    assert short["token_losses"] == pytest.approx(by_hand, abs=1e-5)
    assert math.isfinite(short["loss"])


def test_token_losses_without_a_file_are_refused(made, capsys):
    run, folder = made
    words = ["--data", str(folder / "bos"), "--split", "train", "--token-losses"]
    with pytest.raises(SystemExit):
        main(["eval", str(run), *words])
    assert "--token-losses" in capsys.readouterr().err
