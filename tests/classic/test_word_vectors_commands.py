"""The commands of word vectors, from a text to a page, and what is measured on them."""

from __future__ import annotations

import html.parser
import json
import sys

import numpy as np
import pytest

import llm_jax
from llm_jax.classic.word2vec.evaluation import (
    Analogy,
    WordPair,
    analogies,
    read_analogies,
    read_pairs,
    word_similarity,
)
from llm_jax.classic.word2vec.projection import principal_plane, tsne_plane
from llm_jax.classic.word2vec.vectors import Vectors
from llm_jax.cli import main
from llm_jax.commands.word_vectors_page import _free_label, _overlap
from llm_jax.types import ConfigError, DataError

pytestmark = pytest.mark.unit
WORDS = ("rei", "rainha", "homem", "mulher", "pão")
VALUES = [[1, 1, 0.1], [1, -1, 0.1], [0.2, 1, 0], [0.2, -1, 0], [0, 0.1, 1]]


@pytest.fixture(scope="module")
def vectors():
    return Vectors(WORDS, np.array(VALUES, np.float32))


@pytest.fixture
def file(vectors, tmp_path):
    vectors.save(tmp_path / "v.txt")
    return str(tmp_path / "v.txt")


def test_similarity_is_the_rank_correlation_of_known_pairs(vectors):
    pairs = [
        WordPair("rei", "homem", 9),
        WordPair("rei", "rainha", 5),
        WordPair("homem", "mulher", 1),
        WordPair("rei", "gato", 4),
    ]
    # Cosines 0.83, 0.00 and -0.92 are in the order of the scores.
    found = word_similarity(vectors, pairs)
    assert found == {
        "spearman": pytest.approx(1),
        "pairs": 3,
        "out_of_vocabulary": 1,
        "unknown": ["gato"],
    }
    turned = [pair._replace(score=-pair.score) for pair in pairs]
    assert word_similarity(vectors, turned)["spearman"] == pytest.approx(-1)
    # Ranks 3 2 1 and 2 3 1: 1 - 6 (1 + 1) / (3 (9 - 1)) = 0.5.
    mixed = [pair._replace(score=score) for pair, score in zip(pairs, (2, 3, 1, 9))]
    assert word_similarity(vectors, mixed)["spearman"] == pytest.approx(0.5)
    assert word_similarity(vectors, pairs[:1])["spearman"] is None


def test_analogies_are_counted_by_section(vectors):
    questions = [
        Analogy(("homem", "rei", "mulher", "rainha"), "família"),
        Analogy(("homem", "rei", "mulher", "pão"), "família"),
        Analogy(("mulher", "rainha", "homem", "rei"), "outra"),
        Analogy(("homem", "rei", "mulher", "gata"), "outra"),
    ]
    found = analogies(vectors, questions)
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert (found["questions"], found["out_of_vocabulary"]) == (3, 1)
    assert found["unknown"] == ["gata"]
    assert found["sections"] == {
        "família": {"accuracy": 0.5, "questions": 2},
        "outra": {"accuracy": 1.0, "questions": 1},
    }
    assert analogies(vectors, questions[3:])["accuracy"] is None


def test_evaluation_files_are_read_or_named(tmp_path):
    path = tmp_path / "pairs.txt"
    path.write_text("# words\nRei\trainha\t7.5\n\npão,casa,1\n", encoding="utf-8")
    assert read_pairs(path) == [WordPair("rei", "rainha", 7.5), WordPair("pão", "casa", 1.0)]
    path.write_text("rei rainha\n")
    with pytest.raises(DataError, match=r"line 1 is 'rei rainha'; it must be two words"):
        read_pairs(path)
    path.write_text("rei rainha nan\n")
    with pytest.raises(DataError, match="line 1"):
        read_pairs(path)
    path.write_text("# none\n")
    with pytest.raises(DataError, match="no pairs"):
        read_pairs(path)
    path.write_text(": family\nMan king woman queen\n")
    assert read_analogies(path) == [Analogy(("man", "king", "woman", "queen"), "family")]
    assert read_analogies(path, lowercase=False)[0].words[0] == "Man"
    path.write_text("man king woman\n")
    with pytest.raises(DataError, match="must be four words"):
        read_analogies(path)
    with pytest.raises(DataError, match="cannot be read"):
        read_analogies(tmp_path / "absent")


def test_the_principal_plane_keeps_distances_of_points_in_a_plane():
    rng = np.random.default_rng(0)
    flat = rng.standard_normal((7, 2)) * [3, 1]
    basis = np.linalg.qr(rng.standard_normal((5, 2)))[0]
    plane = principal_plane((flat @ basis.T + 4).astype(np.float32))

    def distances(x):
        return np.linalg.norm(x[:, None] - x[None], axis=2)

    np.testing.assert_allclose(distances(plane), distances(flat), atol=1e-5)
    assert np.abs(plane.sum(axis=0)).max() < 1e-5
    assert plane[:, 0].var() > plane[:, 1].var()
    with pytest.raises(DataError, match="2 vectors of 5 dimensions"):
        principal_plane(np.ones((2, 5)))


def test_tsne_names_the_extra_it_needs(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.manifold", None)
    with pytest.raises(ConfigError, match=r"scikit-learn.*llm_jax\[vectors\]"):
        tsne_plane(np.eye(4))


class _Texts(html.parser.HTMLParser):
    """Counts of elements, and the text of those in the picture."""

    def __init__(self):
        super().__init__()
        self.counts = {}
        self.open = []
        self.labels = []

    def handle_starttag(self, name, attributes):
        self.counts[name] = self.counts.get(name, 0) + 1
        assert not any(key in ("src", "href") for key, _ in attributes)
        self.open.append(name)

    def handle_endtag(self, name):
        while self.open.pop() != name:
            pass

    def handle_data(self, data):
        if self.open and self.open[-1] == "text":
            self.labels.append(data)


def test_a_page_shows_words_and_their_neighbours(file, tmp_path, capsys):
    out = tmp_path / "page.html"
    assert main(["vectors", "page", file, "rei", "pão", "--out", str(out), "--count", "2"]) == 0
    page = _Texts()
    page.feed(out.read_text(encoding="utf-8"))
    # rei with homem and rainha; pão with rainha, which is there already, and rei or homem.
    assert sorted(page.labels) == sorted(set(page.labels))
    assert {"rei", "pão", "homem"} <= set(page.labels)
    assert page.counts["circle"] == len(page.labels)
    assert page.counts["svg"] == 1
    assert page.counts["table"] == 2


def test_labels_are_inside_and_beside_each_other_where_there_is_room():
    taken = []
    for x, y in ((60, 300), (60, 302), (900, 60), (480, 540), (480, 540)):
        label = _free_label(x, y, 100.0, taken)
        assert label.x >= 0 and label.x + 100 <= 960
        assert not any(_overlap(label, other) for other in taken)
        taken.append(label)


def test_commands_on_a_file_of_vectors(file, tmp_path, capsys):
    assert main(["vectors", "nearest", file, "rei", "--count", "1"]) == 0
    assert capsys.readouterr().out.split() == ["rei", "0.8300", "homem"]
    assert main(["vectors", "analogy", file, "homem", "rei", "mulher", "--count", "1"]) == 0
    assert capsys.readouterr().out.split()[1] == "rainha"
    pairs = tmp_path / "pairs.txt"
    pairs.write_text("rei homem 9\nrei rainha 5\nrei gato 4\n", encoding="utf-8")
    assert main(["vectors", "eval", file, "--similarity", str(pairs)]) == 0
    assert capsys.readouterr().out == (
        "similarity: Spearman 1.0000, 2 pairs, 1 out of vocabulary (such as gato)\n"
    )
    for words, error in (
        (["nearest", file, "gato"], "the word 'gato' has no vector"),
        (["eval", file], "give at least one file"),
        (["nearest", str(tmp_path / "none.txt"), "rei"], "cannot be read"),
    ):
        assert main(["vectors", *words]) == 2
        assert error in capsys.readouterr().err


PORTUGUESE = (
    "O rei mora no castelo com a rainha. A rainha mora no castelo com o rei.",
    "O gato dorme no sofá com o cão. O cão dorme no sofá com o gato.",
)


def test_a_text_becomes_vectors_and_a_run_is_resumed(tmp_path, capsys):
    (tmp_path / "texto.txt").write_text("\n".join(PORTUGUESE) * 30, encoding="utf-8")
    run = str(tmp_path / "run")
    words = ["word2vec", str(tmp_path / "texto.txt"), "--out", run, "--dimensions", "8"]
    words += ["--sample", "0", "--epochs", "2"]
    assert main(words) == 0
    assert "12 words" in capsys.readouterr().out
    first = (tmp_path / "run/vectors.txt").read_text(encoding="utf-8")
    assert {"sofá", "cão", "rainha"} <= {line.split()[0] for line in first.splitlines()}
    records = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    rates = [json.loads(record)["learning_rate"] for record in records]
    assert rates == sorted(rates, reverse=True)
    assert main(words) == 0
    assert (tmp_path / "run/vectors.txt").read_text(encoding="utf-8") == first
    capsys.readouterr()
    assert main([*words, "--min-count", "9999"]) == 2
    assert "lower min_count" in capsys.readouterr().err
    assert main([*words, "--window", "3"]) == 2
    assert "window 5, and this one has 3" in capsys.readouterr().err
    assert main([*words[:1], str(tmp_path / "texto.txt"), "--out", str(tmp_path)]) == 2
    assert "other files" in capsys.readouterr().err


def test_shards_are_read_as_the_texts_that_they_were_made_of(tmp_path, capsys):
    text = tmp_path / "texts.jsonl"
    lines = [f"{n} {PORTUGUESE[n % 2]}" for n in range(40)]
    text.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    llm_jax.train_tokenizer((str(text),), tmp_path / "tok", vocab_size=300)
    shards = tmp_path / "shards"
    llm_jax.prepare(
        (str(text),), tmp_path / "tok", shards, block_size=64, workers=1, validation_fraction=0.0
    )
    small = ["--dimensions", "4", "--epochs", "1", "--min-count", "2"]
    for given, out in ((text, "a"), (shards, "b")):
        assert main(["word2vec", str(given), "--out", str(tmp_path / out), *small]) == 0
    files = [(tmp_path / out / "vectors.txt").read_bytes() for out in "ab"]
    assert files[0] == files[1] and b"castelo" in files[0]
    words = ["word2vec", str(shards), "--out", str(tmp_path / "c"), "--text-field", "body"]
    assert main(words) == 2
    assert "text_field is 'body', and shards have no fields" in capsys.readouterr().err
