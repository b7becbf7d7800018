"""``llm-jax card``: what a run's folder records, and what it does not."""

from __future__ import annotations

import json

import pytest
from small_model import save_small_model

import llm_jax
from llm_jax.cli import main
from llm_jax.config import Config
from llm_jax.config.saved import to_json

TRAIN = [
    {"kind": "setup", "step": 0, "parameters": 1234, "environment": {"devices": "2 x v5e"}},
    {"kind": "train", "step": 1, "loss": 3.0, "tokens": 100.0},
    {"kind": "train", "step": 2, "loss": 2.0, "tokens": 90.0},
    {"kind": "ledger", "step": 2, "seconds": {"step": 3000.0}, "wall": 3600.0},
]


@pytest.fixture
def run(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(to_json(Config())))
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in TRAIN))
    return tmp_path


def card(run, *words):
    assert main(["card", str(run), *words]) == 0
    return (run / "MODEL_CARD.md").read_text()


def test_what_is_not_recorded_is_named(run):
    text = card(run)
    for title in ("Data", "Evaluation", "Bias and toxicity", "Energy and cost"):
        assert f"## {title}" in text
    assert text.count("Not measured") == 2 and "Not estimated" in text and "Not stated" in text
    assert "| parameters | 1,234 |" in text
    assert "| tokens that counted, in steps that were logged | 190 |" in text
    assert "| last training loss, nats | 2" in text


def test_energy_and_cost_are_the_wall_time_by_hand(run):
    text = card(run, "--topology", "v5e:2x2", "--price", "2", "--pue", "1.5", "--grid", "100")
    # An hour on 4 chips of 100 to 155 W: see plan/chips.py.
    assert "| chip-hours | 4" in text
    assert "| kWh | 0.600 to 0.930 |" in text
    assert "| kg CO2e | 0.0600 to 0.0930 |" in text
    assert "| USD | 8" in text


def test_a_run_whose_times_are_not_recorded_has_no_energy_of_0(run):
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(lines[:-1]))
    text = card(run, "--topology", "v5e:2x2")
    assert "Not estimated: no start of the run has recorded its wall time" in text
    assert "| wall time of starts that ended | not recorded |" in text


def test_results_beside_the_run_are_shown(run):
    model = {"loss": 1.0, "perplexity": 2.75, "bits_per_byte": 0.5}
    results = {"step": 2, "split": "validation", "model": model, "unigram": model | {"loss": 2}}
    (run / "eval_validation.json").write_text(json.dumps(results))
    (run / "bias.json").write_text(json.dumps({"crows_pairs": {"stereotype | all": 51.5}}))
    text = card(run)
    assert "| model | 2.75 | 0.500 |" in text and "| unigram |" in text
    assert "| crows_pairs, stereotype \\| all | 51.5 |" in text


def test_an_assumption_without_a_machine_is_refused(run, capsys):
    assert main(["card", str(run), "--price", "2"])
    assert "name it with --topology" in capsys.readouterr().err
    assert not (run / "MODEL_CARD.md").exists()


DATA = {
    "splits": {"train": {"documents": 3, "words": 20, "text_bytes": 90, "tokens": 40}},
    "sources": [{"path": "a/text.jsonl", "documents": 3, "bytes": 120, "sha256": "ab" * 32}],
    "dropped": {"duplicates": 2, "empty": 0},
}
SETUP = {
    "kind": "setup",
    "step": 0,
    "parameters": 1234,
    "epochs": 2.5,
    "environment": {"devices": "1 x v5e", "date": "2026-12-01", "jax": "0.10"},
}
TOXICITY = {
    "overall": {"expected_maximum": {"value": 0.25, "low": 0.125, "high": 0.5, "items": 7}},
    "scorer": {"kind": "linear", "error": {"auc": 0.875, "ece": 0.0625, "documents": 64}},
}


def test_a_run_of_which_all_is_recorded_has_a_card_without_gaps(tmp_path):
    run = save_small_model(tmp_path, max_length=64)
    texts = ["The old man reads a file.", "A short text.", "She writes tests and runs them."]
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    source = (str(tmp_path / "text.jsonl"),)
    options = {"validation_fraction": 0.0, "block_size": 64}
    llm_jax.prepare(source, run / "tokenizer", tmp_path / "shards", **options)
    pairs = {"sent_more": "She writes.", "sent_less": "He writes.", "bias_type": "gender"}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(pairs))
    where = ["--data", str(tmp_path / "shards"), "--split", "train", "--context", "32"]
    assert main(["eval", str(run), *where]) == 0
    assert main(["eval", str(run), *where, "--losses", str(tmp_path / "losses.jsonl")]) == 0
    assert main(["bias", str(run), "--sets", f"crows-pairs={tmp_path / 'pairs.jsonl'}"]) == 0
    (run / "toxicity.json").write_text(json.dumps(TOXICITY))
    (run / "data.json").write_text(json.dumps(DATA))
    records = [SETUP, *TRAIN[1:]]
    records[1] = records[1] | {"tokens_per_second": 500.0}
    (run / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records))
    text = card(run, "--topology", "v5e:2x2")
    for gap in ("not recorded", "Not measured", "Not estimated", "–"):
        assert gap not in text, gap
    losses = json.loads((run / "losses_train.json").read_text())
    assert "| documents | 3 |" in text and f"split {losses['split']}:" in text
    kept = json.loads((run / "bias.json").read_text())["crows-pairs"]["overall"]["percent"]
    assert kept["items"] == 1
    wanted = f"| crows-pairs, overall, percent | {kept['value']:.3g}"
    assert wanted in text and "of 1 |" in text
    assert "| overall, expected_maximum | 0.250 (0.125 to 0.500), of 7 |" in text
    assert "| scorer, error, auc | 0.875 |" in text
    # Models that were counted stand beside the model.
    assert "| kneser_ney |" in text and "| model |" in text
