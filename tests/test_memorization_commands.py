"""``llm-jax memorization`` and ``llm-jax contamination``."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
from small_model import ROOT, save_small_model

import llm_jax
from llm_jax.cli import main
from llm_jax.commands.memorization import _drawn

LINES = [
    "The seven purple herons learnt to play the cello in the rain before the others woke up.",
    "Nobody in the village had ever seen a boat that was painted in as many colours as this.",
]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("memory")
    run = save_small_model(folder)
    text = (ROOT / "CONTRIBUTING.md").read_text()
    texts = [LINES[0], *(text[i : i + 300] for i in range(0, 1800, 300))]
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    files = (str(folder / "text.jsonl"),)
    llm_jax.prepare(files, run / "tokenizer", folder / "shards", validation_fraction=0.0)
    return run, folder / "shards"


def test_every_document_that_is_long_enough_is_as_likely_and_read_once():
    texts = [np.arange(10 * i, 10 * i + 3 + i % 3) for i in range(12)]
    long = [i for i, text in enumerate(texts) if len(text) >= 4]
    counts: Counter = Counter()
    starts: Counter = Counter()
    for seed in range(3000):
        rows = _drawn(iter(texts), 4, count=2, seed=seed)
        assert len(rows) == 2
        for row in rows:
            assert row == list(range(row[0], row[0] + 4))
            counts[row[0] // 10] += 1
            starts[row[0] % 10, len(texts[row[0] // 10])] += 1
    assert sorted(counts) == long
    # 750 each; 5 standard deviations are about 130.
    assert all(abs(count - 750) < 130 for count in counts.values())
    assert abs(starts[0, 5] - starts[1, 5]) < 300 and starts[1, 4] == 0
    assert len(_drawn(iter(texts), 4, count=100, seed=0)) == len(long)
    assert _drawn(iter(texts), 6, count=2, seed=0) == []


def test_what_is_continued_is_compared_with_the_text(made, monkeypatch, capsys):
    run, shards = made
    words = ["--prompt", "8", "--continuation", "6", "--texts", "5", "--lengths", "1", "6"]
    assert main(["memorization", str(run), str(shards), *words]) == 0
    assert "6 or more" in capsys.readouterr().out
    kept = json.loads((run / "memorization.json").read_text())
    assert list(kept["splits"]) == ["train"] and kept["splits"]["train"]["texts"] == 5

    from llm_jax.commands import memorization

    rows: list = []

    def remembers(model, prompts, new, batch_size):
        return [row[len(prompts[0]) :] for row in rows]

    def keep(*args, **kwargs):
        rows[:] = _drawn(*args, **kwargs)
        return rows

    monkeypatch.setattr(memorization, "_continued", remembers)
    monkeypatch.setattr(memorization, "_drawn", keep)
    assert main(["memorization", str(run), str(shards), *words]) == 0
    train = json.loads((run / "memorization.json").read_text())["splits"]["train"]
    assert train["whole"] == 1 and train["longest"] == 6 == train["mean"]["value"]
    assert train["extracted"]["6"]["value"] == 1


def test_texts_that_the_shards_have_are_found(made, tmp_path, capsys):
    _, shards = made
    file = tmp_path / "set.jsonl"
    # Case and punctuation do not matter; the third is too short.
    texts = [LINES[0].upper().replace(".", "!"), LINES[1], "Too short."]
    file.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    out = tmp_path / "out.json"
    words = ["--files", str(file), "--out", str(out)]
    assert main(["contamination", str(shards), *words]) == 0
    assert "50.00% contaminated, 1 of 2 texts; 1 shorter than 13 words" in capsys.readouterr().out
    kept = json.loads(out.read_text())["sets"][str(file)]
    assert kept["contaminated"] == [0] and kept["texts"] == 2


@pytest.mark.parametrize(
    "words, problem",
    [
        (["--continuation", "20"], "lengths has 25, and continuation is 20"),
        (["--prompt", "250"], "prompt 250 and continuation 50 are together longer than"),
        (["--prompt", "200"], "no document of the train split has 250 tokens"),
    ],
)
def test_what_does_not_fit_is_refused(made, capsys, words, problem):
    run, shards = made
    assert main(["memorization", str(run), str(shards), *words])
    assert problem in capsys.readouterr().err
