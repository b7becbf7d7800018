"""Perplexity and bits per byte with and without ``<s>``: what is divided is the text of the scored
tokens, no more and no less.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path

import jax
import numpy as np
import pytest
import sentencepiece
from words import WORDS

from llm_jax import models, sharding
from llm_jax.checkpoints.open_run import Run
from llm_jax.classic import KENLM_FALLBACK, train_kneser_ney
from llm_jax.config import Config, MeshConfig
from llm_jax.config.overrides import override
from llm_jax.data.prepare.pipeline import prepare
from llm_jax.data.prepare.train_tokenizer import train_tokenizer
from llm_jax.evaluation.documents import unscored_text
from llm_jax.evaluation.perplexity import Perplexity, perplexity
from llm_jax.evaluation.shards import evaluate_shards, table
from llm_jax.tokenizers.open_tokenizer import open_tokenizer
from llm_jax.tokenizers.sentencepiece_tokenizer import SentencePieceTokenizer
from llm_jax.types import ConfigError, DataError, NonFiniteError

SMALL = {
    "num_layers": 1,
    "embed_dim": 8,
    "attention.num_heads": 1,
    "mlp.hidden_dim": 8,
    "max_length": 64,
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Shards of short documents with ``<s>`` and without, and the texts."""
    folder = tmp_path_factory.mktemp("scored")
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, int(rng.integers(1, 6)))) + f" {i}é" for i in range(200)]
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    source = (str(folder / "text.jsonl"),)
    train_tokenizer(source, folder / "tokenizer", vocab_size=340)
    for name, add_bos in (("after <s>", True), ("without <s>", False)):
        prepare(
            source,
            folder / "tokenizer",
            folder / name,
            block_size=64,
            workers=1,
            validation_fraction=0,
            add_bos=add_bos,
        )
    return folder, texts


def run_of(folder: Path, scale: float = 0.0, **changed) -> Run:
    """A model with every weight at ``scale`` times its initial value: at 0 each of V tokens has the
    probability 1 / V.
    """
    config = override(
        Config(),
        {f"model.{k}": v for k, v in {**SMALL, "vocab_size": 340, **changed}.items()}
        | {"data.seq_length": 32},
    )
    model = models.build(config.model)
    params = jax.tree.map(lambda x: x * scale, model.init(jax.random.key(0)))
    return Run(
        folder, 0, config, sharding.make_mesh(MeshConfig(), jax.devices()[:1]), model, params
    )


def evaluate(made, name: str, run: Run | None = None, **options):
    return evaluate_shards(
        run or run_of(made[0]), made[0] / name, "train", batch_size=32, **options
    )


def test_a_uniform_model_has_its_value_in_closed_form(made):
    folder, texts = made
    ids = [open_tokenizer(folder / "tokenizer").encode(text) for text in texts]
    decode = open_tokenizer(folder / "tokenizer").decode_bytes
    expected = {
        "after <s>": (
            sum(map(len, ids)),
            sum(len(t.encode()) for t in texts),
            sum(len(t.split()) for t in texts),
        ),
        "without <s>": (
            sum(len(i) - 1 for i in ids),
            sum(len(decode(i[1:])) for i in ids),
            sum(len(decode(i[1:]).decode().split()) for i in ids),
        ),
    }
    for name, (tokens, size, words) in expected.items():
        found = evaluate(made, name)["model"]
        assert (found["tokens"], found["bytes"], found["words"]) == (tokens, size, words)
        # A float32 sum of n equal numbers is off by at most n / 2 units in the last place of
        # float32, each 2**-23.
        off = tokens * 2**-24
        assert found["bits_per_byte"] == pytest.approx(tokens * math.log2(340) / size, rel=off)
        for name, per in (
            ("perplexity", tokens),
            ("word_perplexity", words),
            ("byte_perplexity", size),
        ):
            log = tokens * math.log(340) / per
            assert math.log(found[name]) == pytest.approx(log, rel=off)


def test_the_unigram_baseline_has_its_value_in_closed_form(made):
    folder, texts = made
    ids = [open_tokenizer(folder / "tokenizer").encode(text) for text in texts]
    for name, scored in (("after <s>", ids), ("without <s>", [i[1:] for i in ids])):
        # Counted with </s>, which closes every document, and one added to each of the 340 counts.
        counts = Counter(token for document in scored for token in [*document, 3])
        total = sum(counts.values()) + 340
        bits = -sum(
            math.log2((counts[token] + 1) / total) for document in scored for token in document
        )
        found = evaluate(made, name)["unigram"]
        assert found["bits_per_byte"] == pytest.approx(bits / found["bytes"], rel=1e-6)


def test_the_five_gram_baseline_is_counted_with_the_end_and_scored_without(made):
    folder, texts = made
    ids = [open_tokenizer(folder / "tokenizer").encode(text) for text in texts]
    ended = [np.array([*document, 3]) for document in ids]
    model = train_kneser_ney(ended, 340, order=5, fallback=KENLM_FALLBACK)
    for name, first in (("after <s>", 0), ("without <s>", 1)):
        nats = -sum(model.log_probabilities([d])[first:-1].sum() for d in ended)
        results = evaluate(made, name)
        found = results["kneser_ney"]
        expected = nats / math.log(2) / found["bytes"]
        assert found["bits_per_byte"] == pytest.approx(expected, rel=1e-6)
        assert found["tokens"] == results["model"]["tokens"]
        assert found["order"] == 5 and found["context"] == 4 and found["whole_train_split"]
        assert found["train_tokens"] == sum(map(len, ended))
        assert found["fallback_orders"] == list(model.fallback_orders)


def test_the_table_has_a_row_for_each_model_and_says_what_is_odd_of_the_five_gram(made):
    results = evaluate(made, "after <s>")
    results["kneser_ney"] |= {"fallback_orders": [], "whole_train_split": True}
    rows = table(results).splitlines()[2:]
    assert [row.split()[0] for row in rows] == ["model", "5-gram", "bigram", "unigram"]
    results["kneser_ney"] |= {
        "fallback_orders": [4, 5],
        "whole_train_split": False,
        "train_tokens": 8_000_000,
    }
    assert table(results).splitlines()[6:] == [
        "5-gram: counted on the first 8,000,000 tokens of train",
        "5-gram: train is too small to estimate the discounts of order 4, 5, which are 0.5, 1.0,"
        " 1.5",
    ]


def test_the_printed_line_says_what_is_counted(made):
    with_bos, without = (
        table(evaluate(made, name, baselines=False)).splitlines()[0]
        for name in ("after <s>", "without <s>")
    )
    assert with_bos.endswith("after <s>, </s> not scored")
    assert without.endswith(
        "without <s>: the first token of a document is not scored, nor are its bytes counted, </s>"
        " not scored"
    )


@pytest.fixture(scope="module")
def blank_first(tmp_path_factory):
    """A tokenizer that puts a blank before a text, and pieces of more than one letter."""
    folder = tmp_path_factory.mktemp("blank_first")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the cat sat", "a mat", "é"] * 20),
        model_prefix=str(folder / "m"),
        vocab_size=290,
        model_type="bpe",
        byte_fallback=True,
        add_dummy_prefix=True,
        minloglevel=3,
        normalization_rule_name="identity",
        character_coverage=1.0,
        hard_vocab_limit=False,
    )
    return SentencePieceTokenizer(folder / "m.model")


# The pieces of a document, and the words and bytes that are lost with the first.
@pytest.mark.parametrize(
    "pieces, words, size",
    [
        ([" the", " cat"], 1, 3),
        ([" ", "th", "e", " cat"], 0, 0),
        ([" c", "at", " sat"], 0, 1),
        ([" a"], 1, 1),
        ([" ", "é", " a"], 0, 0),
        ([" ", " ", "a"], 0, 0),
        ([" a", "<0x0A>", "m"], 1, 1),
        ([" é", "at"], 0, 2),
        ([], 0, 0),
    ],
)
def test_what_the_first_token_takes_with_it(pieces, words, size, blank_first):
    piece_ids = {blank_first.piece(id): id for id in range(blank_first.vocab_size)}
    ids = [piece_ids[piece] for piece in pieces]
    assert unscored_text([np.array(ids, np.int32)], blank_first) == (words, size)


def test_a_context_beyond_the_model_is_refused(made):
    with pytest.raises(
        ConfigError,
        match=r"context is 65; the model's max_length is 64, so it must be at most that",
    ):
        evaluate(made, "after <s>", context=65)
    run = run_of(made[0])
    score = {
        "words": 1,
        "text_bytes": 1,
        "stride": 8,
        "batch_size": 1,
        "vocab_size": 340,
        "bos": True,
        "eos_id": 3,
    }
    for positions in ("rope", "learned"):
        run = run_of(made[0], positions=positions)
        with pytest.raises(ConfigError, match="max_length"):
            perplexity(run.model, run.params, run.mesh, [np.arange(100)], context=65, **score)


def test_ids_that_the_model_does_not_have_are_refused(made):
    with pytest.raises(
        DataError,
        match=r"document 0 has token ids from \d+ to \d+, and the model has the ids 0 to 199",
    ):
        evaluate(made, "after <s>", run_of(made[0], vocab_size=200), baselines=False)


def test_a_loss_that_is_not_finite_is_an_error_with_its_cause(made):
    run = run_of(made[0], 1.0)
    bad = jax.tree_util.tree_map_with_path(
        lambda path, x: x.at[0].set(jax.numpy.nan) if "down" in jax.tree_util.keystr(path) else x,
        run.params,
    )
    said = (
        r"batch 0 of the evaluation: the loss is nan; the first parameter that is not finite is"
        r" \S*down\S*"
    )
    with pytest.raises(NonFiniteError, match=said):
        evaluate(made, "after <s>", run._replace(params=bad), baselines=False)


def test_figures_that_no_float_holds_are_not_printed_as_inf():
    large = Perplexity(nll=1e6, tokens=1000, words=10, bytes=0, context=8, stride=4, bos=True)
    assert large.summary()["perplexity"] is None and large.summary()["word_perplexity"] is None
    assert large.summary()["byte_perplexity"] is None and large.summary()["bits_per_byte"] is None
    shown = table({"step": 1, "split": "train", "model": large.summary()})
    assert "inf" not in shown and "nan" not in shown and shown.count("not defined") == 4
    assert json.loads(json.dumps(large.summary(), allow_nan=False))["loss"] == 1000.0
