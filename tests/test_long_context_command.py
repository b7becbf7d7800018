"""``llm-jax long-context`` on a small model."""

from __future__ import annotations

import json

import pytest
from small_model import ROOT, save_small_model

import llm_jax
from llm_jax.cli import main


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("long")
    run = save_small_model(folder)
    text = (ROOT / "CONTRIBUTING.md").read_text()
    lines = [json.dumps({"text": text[i : i + 400]}) for i in range(0, 2400, 400)]
    (folder / "text.jsonl").write_text("\n".join(lines))
    files = (str(folder / "text.jsonl"),)
    llm_jax.prepare(files, run / "tokenizer", folder / "shards", validation_fraction=0.0)
    return run, folder / "shards"


def test_positions_and_needles_are_printed_and_kept(made, capsys):
    run, shards = made
    words = ["--split", "train", "--needle-lengths", "120", "--needles", "2", "--context", "40"]
    assert not main(["long-context", str(run), str(shards), *words])
    shown = capsys.readouterr().out
    kept = json.loads((run / "long_context.json").read_text())
    positions = kept["positions"]
    assert [one["first"] for one in positions] == [1, 2, 4, 8, 16, 32]
    assert positions[-1]["last"] == 63 and "32 to 63" in shown
    texts = positions[0]["texts"]
    assert positions[0]["tokens"] == texts
    # At most 40 predictions of a text.
    assert 0 < positions[-1]["tokens"] <= 9 * texts
    assert [one["depth"] for one in kept["needles"]] == [0, 0.25, 0.5, 0.75, 1]
    assert shown.count("0 of 2") + shown.count("1 of 2") + shown.count("2 of 2") == 5


@pytest.mark.parametrize(
    "words, problem",
    [
        (["--context", "257"], "context is 257; it must be at most model.max_length, 256"),
        (["--needle-lengths", "250"], "needle_lengths has 250, and the answer takes 8 more"),
    ],
)
def test_what_does_not_fit_is_refused(made, capsys, words, problem):
    run, shards = made
    assert main(["long-context", str(run), str(shards), *words])
    assert problem in capsys.readouterr().err
