"""Counted models by hand, and the documents put together again from shards."""

import numpy as np
import pytest

from llm_jax.classic import KENLM_FALLBACK, train_kneser_ney
from llm_jax.evaluation.baselines import Bigram, FiveGram


def test_unigram_adds_one():
    counted = Bigram([np.array([0, 1, 1, 2])], vocab_size=4)
    # Scored tokens: 1 1 2 of 3, plus one for each of 4: token 1 has (2 + 1) / 7.
    assert np.exp(-counted.unigram_nll(np.array([0, 1, 2, 3]))) == pytest.approx(
        [3 / 7, 2 / 7, 1 / 7]
    )


def test_bigram_by_hand():
    counted = Bigram([np.array([0, 1, 1, 2])], vocab_size=4)
    # After 1 came 1 and 2, once each: each keeps (1 - 0.75) / 2, and 2 · 0.75 / 2 is spread over
    # the unigram.
    assert np.exp(-counted.bigram_nll(np.array([1, 2]))) == pytest.approx([0.125 + 0.75 * 2 / 7])
    # After 3 nothing was seen: the unigram.
    assert np.exp(-counted.bigram_nll(np.array([3, 1]))) == pytest.approx([3 / 7])


def test_bigram_is_a_distribution_after_every_context():
    rng = np.random.default_rng(0)
    counted = Bigram([rng.integers(0, 9, 200), rng.integers(0, 5, 50)], vocab_size=11)
    for context in range(11):
        total = sum(np.exp(-counted.bigram_nll(np.array([context, t]))[0]) for t in range(11))
        assert total == pytest.approx(1.0)


@pytest.fixture
def few_tokens() -> list[np.ndarray]:
    """Documents that begin with 1."""
    rng = np.random.default_rng(3)
    return [np.array([1, *rng.integers(2, 9, rng.integers(0, 20))]) for _ in range(30)]


def test_a_five_gram_scores_every_token_after_the_first(few_tokens):
    model = train_kneser_ney([d[1:] for d in few_tokens], 9, fallback=KENLM_FALLBACK)
    counted = FiveGram(few_tokens, 9, bos=True)
    assert counted.whole
    for document in few_tokens[:5]:
        assert counted.nll(document) == pytest.approx(-model.log_probabilities([document[1:]]))


def test_without_bos_the_first_token_is_predicted_and_not_scored(few_tokens):
    texts = [d[1:] for d in few_tokens if len(d) > 1]
    model = train_kneser_ney(texts, 9, fallback=KENLM_FALLBACK)
    counted = FiveGram(texts, 9, bos=False)
    for text in texts[:5]:
        assert counted.nll(text) == pytest.approx(-model.log_probabilities([text])[1:])


def test_a_large_split_is_counted_in_part_and_said_to_be(few_tokens, monkeypatch):
    half = few_tokens[:15]
    monkeypatch.setattr("llm_jax.evaluation.baselines.KNESER_NEY_TOKENS", sum(map(len, half)) + 1)
    counted = FiveGram(iter([*half, *[np.arange(1, 9)] * 5]), 9, bos=True)
    assert not counted.whole
    assert counted.model.train_tokens == sum(len(d) - 1 for d in half)


def test_documents_come_back_whole(tmp_path):
    from llm_jax.data.prepare.pipeline import prepare
    from llm_jax.data.prepare.train_tokenizer import train_tokenizer
    from llm_jax.evaluation.documents import documents
    from llm_jax.tokenizers.sentencepiece_tokenizer import SentencePieceTokenizer

    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdefgh"), rng.integers(2, 7))) for _ in range(200)]
    texts = [" ".join(rng.choice(words, rng.integers(1, 120))) + f" {i}" for i in range(60)]
    for i, text in enumerate(texts):
        (tmp_path / f"{i:03}.txt").write_text(text)
    pattern = (str(tmp_path / "*.txt"),)
    train_tokenizer(pattern, tmp_path / "tok", vocab_size=320)
    prepare(
        pattern, tmp_path / "tok", tmp_path / "shards", block_size=64, workers=1, shard_bytes=4096
    )
    tokenizer = SentencePieceTokenizer(tmp_path / "tok")
    found = [d for split in ("train", "validation") for d in documents(tmp_path / "shards", split)]
    assert all(d[0] == tokenizer.bos_id and d[-1] == tokenizer.eos_id for d in found)
    assert sorted(tokenizer.decode(d) for d in found) == sorted(texts)
