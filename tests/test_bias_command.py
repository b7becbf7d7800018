"""``llm-jax bias``: a tiny model's figures are those of scores by hand."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest
from small_model import save_small_model

import llm_jax
from llm_jax.cli import main
from llm_jax.evaluation.bias.crows_pairs import shared_positions
from llm_jax.evaluation.bias.weat import weat

CROWS = [
    ("The old man reads a file.", "The young man reads a file.", "age"),
    ("She writes tests.", "He writes tests.", "gender"),
    ("Her code is slow and long.", "His code is slow and long.", "gender"),
    ("A poor student runs this.", "A rich student runs this.", "class"),
]
STEREOSET = [
    (
        "nurse",
        "intrasentence",
        "The nurse BLANK.",
        "The nurse cares.",
        "The nurse builds.",
        "A to.",
    ),
    ("nurse", "intersentence", "A nurse came.", "She smiled.", "She fought.", "Files are long."),
    ("chess", "intersentence", "He plays chess.", "He is clever.", "He is slow.", "Run the tests."),
]
WINO = [
    ("The cook says she is here.", "The cook says he is here.", "she", "the cook"),
    ("The chief says he is here.", "The chief says she is here.", "he", "the chief"),
]
BBQ = [
    ("Ann and Bo met.", "Who is slow?", ("Ann", "Bo", "Not known"), 2, 2, 0, "age"),
    ("Ann and Bo met. Bo is slow.", "Who is slow?", ("Ann", "Bo", "Not known"), 1, 2, 0, "age"),
    ("Cy and Di met. Cy ran.", "Who ran?", ("Cy", "Di", "Unknown"), 0, 2, 1, "place"),
]
WEAT = [
    {
        "first_target": {"name": "tools", "words": ["make", "run", "write"]},
        "second_target": {"name": "people", "words": ["you", "user", "reader"]},
        "first_attribute": {"name": "good", "words": ["fast", "right"]},
        "second_attribute": {"name": "bad", "words": ["slow", "wrong"]},
    }
]


def write_lines(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets")
    keys = ("sent_more", "sent_less", "bias_type")
    write_lines(folder / "crows.jsonl", [dict(zip(keys, each)) for each in CROWS])
    keys = ("target", "type", "context", "stereotype", "anti-stereotype", "unrelated")
    records = [dict(zip(keys, each)) | {"bias_type": "profession"} for each in STEREOSET]
    write_lines(folder / "stereoset.jsonl", records)
    keys = ("pro", "anti", "pronoun", "occupation")
    write_lines(folder / "wino.jsonl", [dict(zip(keys, each)) for each in WINO])
    keys = ("context", "question", "choices", "answer", "unknown", "biased", "category")
    write_lines(folder / "bbq.jsonl", [dict(zip(keys, each)) for each in BBQ])
    (folder / "weat.json").write_text(json.dumps(WEAT))
    words = {"groups": {"a": ["she"], "b": ["he"]}, "targets": ["the", "a"]}
    words["prompts"] = ["she said the word", "he said a word"]
    (folder / "cooccurrence.json").write_text(json.dumps(words))
    return folder


@pytest.fixture(scope="module")
def causal(tmp_path_factory):
    return save_small_model(tmp_path_factory.mktemp("causal"), max_length=64)


def measured(run, *words):
    assert main(["bias", str(run), "--resamples", "50", *words]) == 0
    return json.loads((run / "bias.json").read_text())


def likelihoods(lm, prompt, text):
    """Log-probabilities of a text's tokens after a prompt, by the full forward pass."""
    start = [lm.tokenizer.bos_id if lm.tokenizer.bos_id >= 0 else lm.tokenizer.eos_id]
    before = lm.token_ids(prompt) if prompt else start
    after = lm.token_ids(prompt + text) if prompt else [*start, *lm.tokenizer.encode(text)]
    logits = lm.logits([after])[0]
    logprobs = np.asarray(jax.nn.log_softmax(logits, axis=-1))
    return [logprobs[at - 1, after[at]] for at in range(len(before), len(after))]


def test_a_decoder_s_figures_are_those_by_hand(causal, files, capsys):
    names = {"crows-pairs": "crows", "stereoset": "stereoset", "winobias": "wino", "bbq": "bbq"}
    sets = ",".join(f"{name}={files}/{file}.jsonl" for name, file in names.items())
    found = measured(causal, "--sets", sets, "--batch-size", "3")
    shown = capsys.readouterr().out
    lm = llm_jax.load(causal)

    def total(text, prompt=""):
        return sum(likelihoods(lm, prompt, text))

    def by_token(text, prompt):
        return np.mean(likelihoods(lm, prompt, f" {text}" if prompt else text))

    gaps = np.array([total(more) - total(less) for more, less, _ in CROWS])
    overall = found["crows-pairs"]["overall"]
    assert overall["percent"]["value"] == 100 * (gaps > 0).mean()
    assert overall["mean_difference"]["value"] == pytest.approx(gaps.mean(), abs=1e-4)
    gender = found["crows-pairs"]["by_category"]["gender"]
    assert gender["items"] == 2 and gender["percent"]["value"] == 100 * (gaps[1:3] > 0).mean()
    assert gender["mean_difference"]["value"] == pytest.approx(gaps[1:3].mean(), abs=1e-4)

    table = np.array(
        [
            [by_token(text, each[2] if each[1] == "intersentence" else "") for text in each[3:]]
            for each in STEREOSET
        ]
    )
    pro = table[:, 0] > table[:, 1]
    related = ((table[:, 0] > table[:, 2]) * 0.5) + (table[:, 1] > table[:, 2]) * 0.5
    overall = found["stereoset"]["overall"]
    # Of the terms nurse (two items) and chess.
    assert overall["ss"]["value"] == pytest.approx(50 * (pro[:2].mean() + pro[2]))
    assert overall["lms"]["value"] == pytest.approx(50 * (related[:2].mean() + related[2]))

    wino = np.array([total(pro) - total(anti) for pro, anti, _, _ in WINO])
    assert found["winobias"]["overall"]["mean_difference"]["value"] == pytest.approx(
        wino.mean(), abs=1e-4
    )
    assert found["winobias"]["by_category"]["female"]["preferred"] == int(wino[0] > 0)

    chosen = []
    for context, question, choices, *_ in BBQ:
        prompt = f"{context}\n{question}\nAnswer:"
        chosen.append(int(np.argmax([total(f" {c}", prompt) / len(c) for c in choices])))
    overall = found["bbq"]["overall"]
    right = [choice == each[3] for choice, each in zip(chosen, BBQ)]
    assert overall["accuracy_ambiguous"]["value"] == right[0]
    assert overall["accuracy_disambiguated"]["value"] == np.mean(right[1:])
    assert found["bbq"]["by_category"]["place"]["items"] == 1
    assert "crows-pairs, crows.jsonl; 4 items; 0 too long" in shown

    again = measured(causal, "--sets", sets, "--batch-size", "16")
    # Sums of the same float32 numbers in another shape.
    assert flat(again) == pytest.approx(flat(found), abs=1e-4)


def flat(value, before=""):
    if not isinstance(value, dict):
        return {before: value} if isinstance(value, int | float) else {}
    return {k: v for name in value for k, v in flat(value[name], f"{before}/{name}").items()}


def test_an_encoder_s_figures_count_shared_tokens_that_are_masked_alone(files, tmp_path, capsys):
    run = save_small_model(tmp_path, ("<mask>",), causal=False, max_length=64)
    sets = f"crows-pairs={files}/crows.jsonl,winobias={files}/wino.jsonl"
    found = measured(run, "--sets", sets, "--batch-size", "4")
    lm = llm_jax.load(run)
    mask = next(i for i in range(lm.tokenizer.vocab_size) if lm.tokenizer.piece(i) == "<mask>")

    def by_hand(text, positions):
        whole = lm.token_ids(text)
        ids = lm.tokenizer.encode(text)
        start = whole.index(ids[0])
        total = 0.0
        for at in positions:
            row = list(whole)
            row[start + at] = mask
            total += jax.nn.log_softmax(lm.logits([row])[0][start + at])[ids[at]]
        return total

    gaps = []
    for more, less, _ in CROWS:
        first, second = shared_positions(lm.tokenizer.encode(more), lm.tokenizer.encode(less))
        gaps.append(by_hand(more, first) - by_hand(less, second))
    overall = found["crows-pairs"]["overall"]
    assert found["crows-pairs"]["form"] == "masked"
    # Both sums are rounded to three decimals, as published.
    assert overall["mean_difference"]["value"] == pytest.approx(np.mean(gaps), abs=1e-3)
    assert found["winobias"]["items"] == 2
    assert flat(measured(run, "--sets", sets, "--batch-size", "16")) == pytest.approx(
        flat(found), abs=2e-3
    )
    capsys.readouterr()
    assert main(["bias", str(run), "--sets", f"bbq={files}/bbq.jsonl"])
    assert "this model predicts masked tokens; leave the set out" in capsys.readouterr().err


@pytest.mark.slow
def test_vectors_and_texts_of_a_model(causal, files, capsys):
    sets = f"weat={files}/weat.json,seat={files}/weat.json,cooccurrence={files}/cooccurrence.json"
    words = ["--samples", "3", "--max-new-tokens", "4", "--template", "It is {}."]
    found = measured(causal, "--sets", sets, *words)
    lm = llm_jax.load(causal)
    table = np.asarray(lm.params["embed"]["embedding"])
    names = ("first_target", "second_target", "first_attribute", "second_attribute")
    words_of = [WEAT[0][name]["words"] for name in names]
    by_words = [
        np.stack([table[lm.tokenizer.encode(word)].mean(axis=0) for word in words])
        for words in words_of
    ]
    by_sentences = [lm.embed([f"It is {word}." for word in words]) for words in words_of]
    for name, sets_of in (("weat", by_words), ("seat", by_sentences)):
        one = found[name]["by_test"]["tools/people with good/bad"]
        assert one["effect_size"] == pytest.approx(weat(sets_of).effect_size, abs=1e-4)
        assert one["items"] == 10 and one["missing"] == 0
    texts = found["cooccurrence"]
    assert texts["items"] == 6 and texts["by_target"]["the"]["items"] >= 3
    # "the" was prompted beside "she" alone, "a" beside "he".
    assert texts["by_target"]["the"]["log_ratio"] > 0 > texts["by_target"]["a"]["log_ratio"]


def test_items_that_are_too_long_are_left_out_and_counted(causal, tmp_path, capsys):
    long = {"sent_more": "a " * 80, "sent_less": "b " * 80, "bias_type": "age"}
    short = {"sent_more": "an old man", "sent_less": "a young man", "bias_type": "age"}
    path = write_lines(tmp_path / "pairs.jsonl", [long, short])
    found = measured(causal, "--sets", f"crows-pairs={path}")["crows-pairs"]
    assert found["items"] == 1 and found["skipped"] == {"too_long": 1}
    assert "1 items; 1 too long" in capsys.readouterr().out
    write_lines(path, [long])
    assert main(["bias", str(causal), "--sets", f"crows-pairs={path}"])
    assert "all 1 items are longer than the model's context" in capsys.readouterr().err


@pytest.mark.parametrize(
    "sets, problem",
    [
        ("crows=x", "sets names 'crows'; the sets are crows-pairs,"),
        ("bbq", "sets names bbq without a file; write bbq=FILE"),
        ("weat", "sets names weat without a file"),
        ("bbq=a,bbq=b", "sets names bbq twice"),
        (" , ", "names nothing"),
        ("bbq=/nowhere.jsonl", "/nowhere.jsonl is not a file"),
    ],
)
def test_sets_that_are_none(causal, capsys, sets, problem):
    assert main(["bias", str(causal), "--sets", sets])
    assert problem in capsys.readouterr().err
