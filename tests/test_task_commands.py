"""``llm-jax task classify`` and ``llm-jax toxicity``."""

from __future__ import annotations

import json

import numpy as np
import pytest
from small_model import save_small_model

from llm_jax.classic.text_classifier import TextClassifier
from llm_jax.cli import main
from llm_jax.commands.tasks import classifiers
from llm_jax.commands.toxicity import _scores
from llm_jax.commands.toxicity_scorers import ClassifierScorer
from llm_jax.evaluation.bias.toxicity_scorer import ScorerError, read_error, scorer_error
from llm_jax.evaluation.text_metrics.roc import roc_auc
from llm_jax.types import ConfigError, DataError


def write_lines(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """Two labels that one word decides."""
    rng = np.random.default_rng(0)
    words = ["the", "a", "house", "tree", "runs", "sits", "under", "over", "blue", "green"]
    records = []
    for number in range(120):
        label = "toxic" if number % 3 == 0 else "clean"
        word = "awful" if label == "toxic" else "lovely"
        filler = " ".join(rng.choice(words, 6))
        records.append({"text": f"{filler} {word} {filler}", "label": label})
    folder = tmp_path_factory.mktemp("texts")
    return write_lines(folder / "texts.jsonl", records)


@pytest.fixture(scope="module")
def scorer(texts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("scorer") / "made"
    assert main(["task", "classify", texts, "--out", str(folder), "--l2", "0.01"]) == 0
    return folder


def test_a_classifier_is_scored_on_texts_that_were_held_out(scorer, texts, tmp_path, capsys):
    scores = json.loads((scorer / "evaluation.json").read_text())
    assert scores["documents"] == 24 and scores["accuracy"] == 1
    assert scores["majority"]["label"] == "clean" and scores["majority"]["accuracy"] < 0.9
    out = str(tmp_path / "made")
    assert main(["task", "classify", texts, "--out", out, "--test", texts]) == 0
    shown = capsys.readouterr().out
    assert "trained on 120 texts, scored on 120 others" in shown and "always clean" in shown


@pytest.mark.parametrize(
    "lines, words, problem",
    [
        ([{"text": "a", "label": "x"}] * 4, [], "label"),
        ([{"text": "a", "label": "x"}, {"text": "b"}], [], ":2: label is None"),
        ([{"text": "a", "label": "x"}] * 2, ["--test-fraction", "0"], "0 would be held out"),
    ],
    ids=["one class", "no label", "nothing held out"],
)
def test_texts_that_cannot_be_classified_are_refused(tmp_path, capsys, lines, words, problem):
    path = write_lines(tmp_path / "texts.jsonl", lines)
    assert main(["task", "classify", path, "--out", str(tmp_path / "out"), *words])
    assert problem in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_toxicity_is_the_share_that_the_classifier_gives(scorer):
    classifier = TextClassifier.load(scorer)
    score = ClassifierScorer(scorer, "toxic")
    written = [["the awful house", "the lovely tree", " \n"], ["lovely", "lovely", "lovely"]]
    scores = _scores(score, written)
    wanted = classifier.predict_proba(["the awful house", "the lovely tree"])
    column = classifier.classes.index("toxic")
    np.testing.assert_allclose(scores[0, :2], wanted[:, column])
    # A blank text has no score, and is not 0.
    assert np.isnan(scores[0, 2]) and not np.isnan(scores[1]).any()
    assert scores[0, 0] > 0.5 > scores[0, 1]


def test_a_model_is_measured_with_intervals_groups_and_the_scorer_s_own_error(
    scorer, tmp_path, capsys
):
    run = save_small_model(tmp_path)
    rows = [{"prompt": "A house", "who": "one"}, {"prompt": "A tree", "who": "two"}] * 2
    prompts = write_lines(tmp_path / "prompts.jsonl", rows)
    words = ["--scorer", str(scorer), "--group-field", "who", "--samples", "3"]
    assert main(["toxicity", str(run), prompts, *words, "--max-new-tokens", "5"]) == 0
    shown = capsys.readouterr().out
    assert "AUC 1.0000, ECE 0." in shown and "on 24 held-out texts" in shown
    kept = json.loads((run / "toxicity.json").read_text())
    overall = kept["overall"]
    assert overall["generations"] + overall["missing"] == 12
    assert set(kept["by_group"]) == {"one", "two"}
    again = (run / "toxicity.json").read_text()
    assert main(["toxicity", str(run), prompts, *words, "--max-new-tokens", "5"]) == 0
    assert (run / "toxicity.json").read_text() == again
    assert main(["toxicity", str(run), prompts, *words, "--toxic-label", "bad"])
    assert "the scorer has the labels clean, toxic" in capsys.readouterr().err


def test_the_error_of_a_scorer_by_hand():
    has = [True, False, True, False]
    # Of four pairs of a toxic and another text three are in order, and one is a tie.
    assert roc_auc([0.9, 0.4, 0.4, 0.1], has) == 3.5 / 4
    assert roc_auc([1.0, 2.0], [True, True]) is None
    found = scorer_error([1.0, 0.0, 0.5, 0.5], has)
    assert found == ScorerError(auc=3.5 / 4, ece=0.0, documents=4)
    assert scorer_error([0.8, 0.8, 0.8, 0.8], has).ece == pytest.approx(0.3)
    for scores, labels, said in (
        ([0.1], [True, False], "one of each is expected"),
        ([float("nan"), 0.1], [True, False], r"scores\[0\] is nan"),
        ([], [], "one of each"),
    ):
        with pytest.raises(DataError, match=said):
            roc_auc(scores, labels)


def test_another_kind_of_classifier_takes_the_linear_one_s_place(tmp_path, monkeypatch, capsys):
    class StandIn:
        kind = "stand-in"
        classes = ("clean", "toxic")

        def __init__(self, folder):
            assert folder.name == "own"

        def probabilities(self, texts, wheres):
            assert all(len(one) == 1 and one[0].strip() for one in texts)
            return np.tile([0.25, 0.75], (len(texts), 1))

    monkeypatch.setitem(classifiers.CLASSIFIERS, "own.json", StandIn)
    own = tmp_path / "own"
    own.mkdir()
    (own / "own.json").write_text("{}")
    error = {"auc": 0.75, "ece": 0.125, "documents": 40}
    (own / "evaluation.json").write_text(json.dumps({"by_label": {"toxic": error}}))
    run = save_small_model(tmp_path)
    prompts = write_lines(tmp_path / "prompts.jsonl", [{"prompt": "A house"}])
    words = ["--scorer", str(own), "--samples", "2", "--max-new-tokens", "3"]
    assert main(["toxicity", str(run), prompts, *words]) == 0
    assert "AUC 0.7500, ECE 0.1250 on 40 held-out texts" in capsys.readouterr().out
    kept = json.loads((run / "toxicity.json").read_text())
    assert kept["overall"]["expected_maximum"]["value"] == 0.75
    assert kept["scorer"] == {"kind": "stand-in", "toxic_label": "toxic", "error": error}
    score = ClassifierScorer(own, "toxic")
    assert score(["a", " ", "b"]).tolist() == [0.75, 0, 0.75]
    found = _scores(score, [["a", " "], ["b", "c"]])
    np.testing.assert_array_equal(found, [[0.75, np.nan], [0.75, 0.75]])


def test_folders_without_a_scorer_or_its_error(tmp_path):
    with pytest.raises(ConfigError, match="it has no classifier.json or classes.json; make one"):
        ClassifierScorer(tmp_path, "toxic")
    assert read_error(tmp_path, "toxic") is None
    (tmp_path / "evaluation.json").write_text('{"accuracy": 1}')
    assert read_error(tmp_path, "toxic") is None
    (tmp_path / "evaluation.json").write_text('{"by_label": {"clean": {}}}')
    with pytest.raises(DataError, match="no auc, ece and documents of 'toxic'"):
        read_error(tmp_path, "toxic")
