"""``llm-jax task embed``, ``similarity`` and ``retrieve``."""

from __future__ import annotations

import json

import numpy as np
import pytest
from small_model import save_small_model

from llm_jax.api.load import load
from llm_jax.classic.rank_correlation import spearman
from llm_jax.cli import main

NAMES = ["model", "error", "test", "file", "line", "name", "table", "field"]
# Another word for each of these.
OTHERS = [name[::-1] for name in NAMES]
pytestmark = pytest.mark.usefixtures("one_device")


def write_lines(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(save_small_model(tmp_path_factory.mktemp("base"), causal=False))


@pytest.fixture(scope="module")
def trained(model, tmp_path_factory):
    """Pairs whose texts share no word, but each word of the one has one of the other."""
    folder = tmp_path_factory.mktemp("embedder")
    rng = np.random.default_rng(0)
    pairs = []
    for _ in range(120):
        chosen = rng.choice(8, 3)
        second = [OTHERS[n] for n in chosen]
        pairs.append({"text": " ".join(NAMES[n] for n in chosen), "positive": " ".join(second)})
    path = write_lines(folder / "pairs.jsonl", pairs)
    words = ["task", "embed", path, "--model", model, "--out", str(folder / "out")]
    words += ["--epochs", "6", "--learning-rate", "0.02", "--batch-size", "32"]
    assert main(words) == 0
    return folder / "out"


def test_pairs_are_learnt_and_found_again(trained):
    found = json.loads((trained / "evaluation.json").read_text())
    ours, words = found["figures"], found["baselines"]["bm25"]
    assert ours["mrr"]["value"] > 0.7 > 0.3 > words["mrr"]["value"]
    assert found["kind"] == "contrastive"
    config = load(trained / "run").config
    assert (config.data.objective.pooling, config.data.objective.temperature) == ("mean", 0.05)
    answer = json.loads((trained / "answers.jsonl").read_text().splitlines()[0])
    assert answer["relevant"] and -1 <= answer["cosine"] <= 1 + 1e-6


def test_similarity_is_the_rank_correlation_of_cosines(trained, tmp_path, capsys):
    records = [
        {"text": "model error", "other": "ledom rorre", "score": 5},
        {"text": "model error", "other": "model elbat", "score": 2.5},
        {"text": "field", "other": "eman enil", "score": 0},
    ]
    path = write_lines(tmp_path / "pairs.jsonl", records)
    run, out = str(trained / "run"), tmp_path / "out"
    assert main(["task", "similarity", path, "--model", run, "--out", str(out)]) == 0
    found = json.loads((out / "evaluation.json").read_text())
    lm = load(trained / "run")
    a, b = (lm.embed([record[name] for record in records]) for name in ("text", "other"))
    wanted = spearman((a * b).sum(axis=1), [5, 2.5, 0])
    assert found["figures"]["spearman"]["value"] == pytest.approx(wanted)
    assert found["pooling"] == "mean" and set(found["baselines"]) == {"tf-idf"}
    for record, problem in (
        ({"text": "a", "other": "b", "score": "x"}, ":2: score is 'x'; a number is expected"),
        ({"text": "a", "score": 1}, ":2: other is None; a text is expected"),
    ):
        bad = write_lines(tmp_path / "bad.jsonl", [records[0], record])
        assert main(["task", "similarity", bad, "--model", run, "--out", str(out)]) == 2
        assert problem in capsys.readouterr().err
    long = write_lines(tmp_path / "long.jsonl", [records[0], {**records[2], "text": "word " * 300}])
    words = ["task", "similarity", long, "--model", run, "--out", str(out)]
    assert main(words) == 2
    assert ":2 has" in capsys.readouterr().err
    assert main([*words, "--long", "truncate"]) == 0
    assert "1 too long and cut" in capsys.readouterr().out


def test_documents_are_retrieved_by_id(trained, tmp_path, capsys):
    documents = [{"id": n, "text": other} for n, other in enumerate(OTHERS)]
    stored = write_lines(tmp_path / "documents.jsonl", documents)
    queries = [{"text": name, "relevant": [n]} for n, name in enumerate(NAMES)]
    asked = write_lines(tmp_path / "queries.jsonl", queries)
    run, out = str(trained / "run"), tmp_path / "out"
    words = ["task", "retrieve", asked, "--documents", stored, "--model", run, "--out", str(out)]
    assert main(words) == 0
    found = json.loads((out / "evaluation.json").read_text())
    assert found["figures"]["recall@10"]["value"] == 1 and found["documents"] == 8
    assert found["figures"]["mrr"]["value"] > 0.6
    capsys.readouterr()
    for record, problem in (
        ({"text": "a", "relevant": [99]}, "relevant has '99', which is the id of no document"),
        ({"text": "a", "relevant": []}, "relevant is []; a list of ids is expected"),
    ):
        words[2] = write_lines(tmp_path / "bad.jsonl", [record])
        assert main(words) == 2
        assert problem in capsys.readouterr().err
    words[4] = write_lines(tmp_path / "twice.jsonl", [documents[0], documents[0]])
    assert main(words) == 2
    assert "id '0' is that of another document too" in capsys.readouterr().err
