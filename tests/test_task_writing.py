"""``llm-jax task summarize``, ``translate``, ``answer`` and ``mask``."""

from __future__ import annotations

import json

import numpy as np
import pytest
import sacrebleu
from small_model import save_small_model

from llm_jax.cli import main
from llm_jax.commands.tasks.mask import with_masks
from llm_jax.commands.tasks.written import first_sentences
from llm_jax.evaluation.text_metrics.answers import answer_scores
from llm_jax.evaluation.text_metrics.rouge import rouge
from llm_jax.tokenizers.open_tokenizer import open_tokenizer

pytestmark = pytest.mark.usefixtures("one_device")
TEXTS = ["The cat sat. It slept! Was it old? Yes.", "A dog ran on the road. It fell."]


def write_lines(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    return str(save_small_model(tmp_path_factory.mktemp("decoder")))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoder")
    return str(save_small_model(folder, ("<mask>",), causal=False))


def results(out):
    answers = [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()]
    return json.loads((out / "evaluation.json").read_text()), answers


def test_first_sentences():
    assert first_sentences(TEXTS[0], 3) == "The cat sat. It slept! Was it old?"
    assert first_sentences("a b 3.5 c", 1) == "a b 3.5 c"


@pytest.mark.slow
def test_what_is_written_is_scored_beside_what_needs_no_model(decoder, tmp_path):
    """The figures are those of the metrics on the answers that were written."""
    out = tmp_path / "out"
    records = [
        {"document": text, "summary": ["The cat sat.", "a dog"][n]} for n, text in enumerate(TEXTS)
    ]
    path = write_lines(tmp_path / "x.jsonl", records)
    words = [path, "--model", decoder, "--out", str(out), "--max-new-tokens", "8"]
    assert main(["task", "summarize", *words]) == 0
    found, answers = results(out)
    references = [[record["summary"]] for record in records]
    assert found["template"] == "{document}\nSummary:" and found["items"] == 2
    for own, texts in (
        (found["figures"], [answer["text"] for answer in answers]),
        (found["baselines"]["first 3 sentences"], [first_sentences(text, 3) for text in TEXTS]),
    ):
        wanted = rouge(texts, references, kinds=("rouge1",)).scores["rouge1"].f.value
        assert own["rouge1"]["value"] == pytest.approx(wanted)
    more = ["--text-field", "document", "--target-field", "summary", "--template", "{document} ="]
    assert main(["task", "translate", *words, *more]) == 0
    found, answers = results(out)
    copies = sacrebleu.corpus_chrf(TEXTS, [["The cat sat.", "a dog"]]).score
    assert found["baselines"]["copy"]["chrF2"]["value"] == pytest.approx(copies)
    assert set(found["figures"]) == {"BLEU", "chrF2", "TER"}
    more = ["--question-field", "document", "--answer-field", "summary"]
    assert main(["task", "answer", *words, *more, "--context-field", "summary"]) == 0
    found, answers = results(out)
    f1 = answer_scores([answer["text"] for answer in answers], references).f1
    assert found["figures"]["f1"]["value"] == pytest.approx(f1)
    assert found["baselines"]["always The cat sat."]["exact_match"]["value"] == 0.5
    assert found["baselines"]["first sentence"]["exact_match"]["value"] == 1


@pytest.mark.parametrize(
    "task, record, words, problem",
    [
        ("summarize", {"document": "a"}, [], ":1: summary is None; a reference is expected"),
        ("summarize", {"document": "a", "summary": []}, [], ":1: summary is []; a reference"),
        ("summarize", {"summary": "a"}, [], ":1: document is None; a text is expected"),
        ("translate", {"source": "a", "target": "b"}, [], "template is empty, and"),
        (
            "translate",
            {"source": "a", "target": "b"},
            ["--template", "{text}"],
            "whose fields are ['text']; there are ['source']",
        ),
        (
            "answer",
            {"question": "a " * 300, "answer": "b"},
            [],
            "too many for the context of 256 with 32 new ones",
        ),
        ("mask", {"text": "a"}, [], "is a decoder (model.causal True), which has no masked tokens"),
    ],
)
def test_what_cannot_be_asked_is_named(decoder, task, record, words, problem, tmp_path, capsys):
    path = write_lines(tmp_path / "x.jsonl", [record])
    words = [path, "--model", decoder, "--out", str(tmp_path / "out"), *words]
    assert main(["task", task, *words]) == 2
    assert problem in capsys.readouterr().err


def test_long_prompts_are_left_out_and_counted(decoder, tmp_path, capsys):
    records = [{"question": text, "answer": "b"} for text in ("a " * 300, "short")]
    path = write_lines(tmp_path / "x.jsonl", records)
    words = [path, "--model", decoder, "--out", str(tmp_path / "out"), "--long", "skip"]
    assert main(["task", "answer", *words]) == 0
    assert "answer, 1 items, 1 too long and left out" in capsys.readouterr().out


def test_hidden_tokens_are_guessed_beside_the_most_frequent(encoder, decoder, tmp_path, capsys):
    path = write_lines(tmp_path / "x.jsonl", [{"text": text} for text in TEXTS])
    out = tmp_path / "out"
    words = [path, "--model", encoder, "--out", str(out), "--rate", "0.3"]
    assert main(["task", "mask", *words]) == 0
    found, answers = results(out)
    right = [a == b for one in answers for a, b in zip(one["hidden"], one["guessed"], strict=True)]
    assert found["figures"]["accuracy"]["value"] == pytest.approx(np.mean(right))
    assert found["hidden"] == len(right) > 4
    assert (
        main(
            [
                "task",
                "answer",
                path,
                "--model",
                encoder,
                "--out",
                str(out),
                "--question-field",
                "text",
                "--answer-field",
                "text",
            ]
        )
        == 2
    )
    assert "is an encoder (model.causal False), which writes no text" in capsys.readouterr().err
    tokenizer = open_tokenizer(f"{encoder}/tokenizer")
    rows = [[tokenizer.bos_id, *tokenizer.encode(text), tokenizer.eos_id] for text in TEXTS]
    masked = with_masks(tokenizer, rows, ["", ""], rate=0.3, seed=1)
    for row, one in zip(rows, masked, strict=True):
        assert len(one.places) == round(0.3 * (len(row) - 2))
        assert [row[at] for at in one.places] == one.hidden
        assert all(tokenizer.piece(one.ids[at]) == "<mask>" for at in one.places)
        assert sorted([*one.seen, *one.hidden]) == sorted(row[1:-1])
    assert with_masks(tokenizer, rows, ["", ""], rate=0.3, seed=1) == masked
    words[2] = str(save_small_model(tmp_path / "plain", causal=False))
    assert main(["task", "mask", *words]) == 2
    assert "has no <mask> or [MASK]; use a model" in capsys.readouterr().err
