"""``llm-jax task`` with a model that is trained for the task."""

from __future__ import annotations

import json

import numpy as np
import pytest
from small_model import save_small_model

from llm_jax.checkpoints.open_run import open_run
from llm_jax.cli import main
from llm_jax.commands.toxicity_scorers import ClassifierScorer
from llm_jax.training.metrics import read_metrics

pytestmark = pytest.mark.usefixtures("one_device")


def write_lines(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(save_small_model(tmp_path_factory.mktemp("base"), causal=False))


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """A word decides the label; one text in four is of the rarer one."""
    rng = np.random.default_rng(0)
    records = []
    for number in range(80):
        label = number % 4 == 0
        filler = " ".join(rng.choice(["the", "a", "test", "file", "line"], 2))
        records.append({"a": f"{filler} {'error' if label else 'model'}", "b": filler, "y": label})
    return write_lines(tmp_path_factory.mktemp("texts") / "texts.jsonl", records)


FIELDS = ["--text-field", "a", "--label-field", "y"]
QUICK = ["--batch-size", "16", "--learning-rate", "0.02"]


def test_a_model_learns_labels_and_goes_on_where_it_was(model, texts, tmp_path, capsys):
    out = tmp_path / "out"
    words = ["task", "classify", texts, "--model", model, "--out", str(out), *FIELDS, *QUICK]
    words += ["--epochs", "4", "--class-weights", "balanced"]
    assert main(words) == 0
    shown = capsys.readouterr().out
    found = json.loads((out / "evaluation.json").read_text())
    assert (found["items"], found["trained_on"], found["labels"]) == (16, 64, ["false", "true"])
    assert found["figures"]["accuracy"]["value"] == 1
    (often,) = found["baselines"].values()
    assert 0.5 < often["accuracy"]["value"] < 1 and often["macro_f1"]["value"] < 0.5
    assert "always" in shown and str(out / "report.html") in shown
    answers = [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()]
    assert [answer["label"] for answer in answers] == [answer["predicted"] for answer in answers]
    assert answers[0]["where"].startswith(texts + ":")
    # The trainer's own accuracy on the same texts.
    records = list(read_metrics(out / "run" / "metrics.jsonl"))
    assert [r["accuracy"] for r in records if r["kind"] == "eval"][-1] == 1
    before = [r["loss"] for r in records if r["kind"] == "train"]
    last = max(int(p.name) for p in (out / "run" / "checkpoints").iterdir() if p.name.isdigit())
    assert last == len(before) == 16
    # New texts get the label of the same model, and its probability is a score.
    labelled = tmp_path / "labelled.jsonl"
    new = write_lines(tmp_path / "new.jsonl", [{"a": a["texts"][0], "n": 1} for a in answers])
    label = ["task", "label", str(out), new, "--out", str(labelled), "--text-field", "a"]
    assert main(label) == 0
    records = [json.loads(line) for line in labelled.read_text().splitlines()]
    assert [r["predicted"] for r in records] == [answer["label"] for answer in answers]
    for record, answer in zip(records, answers, strict=True):
        assert max(record["probabilities"].values()) == pytest.approx(answer["probability"])
        assert record["n"] == 1
    score = ClassifierScorer(out, "true")
    np.testing.assert_allclose(
        score([r["a"] for r in records]), [r["probabilities"]["true"] for r in records], rtol=1e-6
    )
    assert (score.kind, score.error.auc, score.error.documents) == ("model", 1, 16)
    assert main(label) == 2
    assert "exists; give another file, or delete it" in capsys.readouterr().err
    # The same command goes on, here with nothing left to train.
    assert main(words) == 0
    assert json.loads((out / "evaluation.json").read_text()) == found
    capsys.readouterr()
    assert main([*words, "--max-length", "40"]) == 2
    assert "max_length is 40, and" in capsys.readouterr().err


@pytest.mark.slow
def test_two_texts_are_one_row_and_the_body_may_stay(model, texts, tmp_path, capsys):
    out = tmp_path / "out"
    words = ["task", "classify", texts, "--model", model, "--out", str(out), *FIELDS, *QUICK]
    words += ["--second-field", "b", "--epochs", "1", "--classes-only", "--pooling", "first"]
    assert main(words) == 0
    run = open_run(out / "run")
    assert (run.config.model.pooler.reads, run.config.train.trainable) == ("first", ("classes/*",))
    before = open_run(model).params
    np.testing.assert_array_equal(run.params["embed"]["embedding"], before["embed"]["embedding"])
    answer = json.loads((out / "answers.jsonl").read_text().splitlines()[0])
    assert len(answer["texts"]) == 2


@pytest.mark.parametrize(
    "lines, words, problem",
    [
        ([{"text": "a", "label": "x"}] * 4, [], "all have the label 'x'; give texts with"),
        ([{"text": "a", "label": "x"}, {"text": "b"}], [], ":2: label is None"),
        ([{"text": "", "label": "x"}, {"text": "b"}], [], ":1: text is ''"),
        (
            [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}],
            ["--max-length", "2"],
            "has 3 tokens, and a row may have 2; raise --max-length",
        ),
        ([], [], "has no records"),
    ],
    ids=["one class", "no label", "no text", "too long", "empty"],
)
def test_texts_that_cannot_be_learnt_are_named(lines, words, problem, model, tmp_path, capsys):
    path = write_lines(tmp_path / "x.jsonl", lines)
    out = str(tmp_path / "out")
    words = [*words, "--test", path]
    assert main(["task", "classify", path, "--model", model, "--out", out, *words]) == 2
    assert problem in capsys.readouterr().err


def test_labels_of_the_test_that_training_lacks_are_named(model, texts, tmp_path, capsys):
    test = write_lines(tmp_path / "test.jsonl", [{"a": "the test", "y": "maybe"}])
    words = ["task", "classify", texts, "--model", model, "--out", str(tmp_path / "out"), *FIELDS]
    assert main([*words, "--test", test]) == 2
    assert ":1: the label 'maybe' is not among those" in capsys.readouterr().err


@pytest.mark.slow
def test_a_model_learns_to_label_words(model, tmp_path, capsys):
    rng = np.random.default_rng(0)
    records = []
    for _ in range(48):
        # A word after "file" is a name, whatever it is.
        words = list(rng.choice(["test", "line", "model"], 4))
        at = int(rng.integers(0, 3))
        words[at] = "file"
        tags = ["O"] * 4
        tags[at + 1] = "B-name"
        records.append({"tokens": words, "tags": tags})
    train = write_lines(tmp_path / "train.jsonl", records)
    out = tmp_path / "out"
    words = ["task", "tag", train, "--model", model, "--out", str(out), *QUICK, "--epochs", "10"]
    assert main(words) == 0
    found = json.loads((out / "evaluation.json").read_text())
    (usual,) = found["baselines"].values()
    assert found["figures"]["span_f1"]["value"] > 0.9 > 0.6 > usual["span_f1"]["value"]
    assert found["figures"]["accuracy_of_words"]["value"] > 0.95
    capsys.readouterr()
    for record, problem in (
        ({"tokens": ["a"], "tags": ["O", "O"]}, ":1: tokens has 1 words and tags 2 labels"),
        ({"tokens": ["a"], "tags": ["NOUN"]}, ":1: tag 0 is 'NOUN'; tags are O, B-x or I-x"),
        ({"tokens": [], "tags": []}, r":1: tokens is []; a list of texts is expected"),
    ):
        bad = write_lines(tmp_path / "bad.jsonl", [record] * 2)
        assert main(["task", "tag", bad, "--model", model, "--out", str(tmp_path / "x")]) == 2
        assert problem in capsys.readouterr().err
    assert main(["task", "label", str(out), train, "--out", str(tmp_path / "y")]) == 2
    assert "labels words (task tag), and not texts" in capsys.readouterr().err
