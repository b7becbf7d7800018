"""The loss by position and needle retrieval, on losses and models of known value."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest

import llm_jax
from llm_jax.evaluation.long_context.needles import find_needles, make_needles
from llm_jax.evaluation.long_context.positions import loss_by_position
from llm_jax.types import ConfigError, DataError


def test_losses_are_gathered_by_powers_of_two():
    found = loss_by_position([np.array([1.0, 2, 4, 8, 16]), np.array([3.0, 6.0])])
    assert [(one.first, one.last) for one in found] == [(1, 1), (2, 3), (4, 7)]
    assert [(one.tokens, one.texts) for one in found] == [(2, 2), (3, 2), (2, 1)]
    np.testing.assert_allclose([one.loss for one in found], [2, 4, 12])
    assert found[0].perplexity == pytest.approx(math.e**2)
    assert found[0].low == 1 and found[0].high == 3
    assert found[2].low is None and found[2].high is None


def test_the_mean_over_positions_is_the_mean_over_tokens():
    rng = np.random.default_rng(0)
    losses = [rng.random(n) for n in (1, 2, 3, 31, 32, 100)]
    found = loss_by_position(losses)
    assert sum(one.tokens for one in found) == 169
    total = sum(one.tokens * one.loss for one in found)
    assert total == pytest.approx(sum(one.sum() for one in losses))


def test_losses_that_are_missing_are_named():
    with pytest.raises(DataError, match="token 2 of text 1 is nan"):
        loss_by_position([np.ones(3), np.array([1, math.nan])])
    with pytest.raises(DataError, match="no tokens to score"):
        loss_by_position([np.array([])])


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("needles")
    (folder / "text.txt").write_text("The quick brown fox jumps over the lazy dog.\n" * 50)
    return llm_jax.train_tokenizer((str(folder / "text.txt"),), folder / "made", vocab_size=300)


@pytest.fixture(scope="module")
def texts(tokenizer):
    line = "The quick brown fox jumps over the lazy dog. "
    return [np.array(tokenizer.encode(line * 20)) for _ in range(10)]


def test_prompts_have_the_fact_at_its_depth_and_the_length_asked_for(tokenizer, texts):
    needles = make_needles(texts, tokenizer, lengths=[120, 300], each=3, seed=1, begin=[1])
    assert len(needles) == 2 * 5 * 3
    again = make_needles(texts, tokenizer, lengths=[120, 300], each=3, seed=1, begin=[1])
    assert needles == again
    assert needles != make_needles(texts, tokenizer, lengths=[120, 300], each=3, seed=2, begin=[1])
    for needle in needles:
        assert len(needle.ids) == needle.length and needle.ids[0] == 1
        text = tokenizer.decode(needle.ids[1:])
        facts = re.findall(r"The number of (\w+) is (\d+)\.", text)
        assert len(facts) == 1 and facts[0][1] == needle.answer
        assert text.endswith(f"The number of {facts[0][0]} is")
        place = text.index("The number of") / text.rindex("The number of")
        assert abs(place - needle.depth) < 0.25


def test_a_model_that_looks_it_up_finds_all_and_one_that_guesses_none(tokenizer, texts):
    needles = make_needles(texts, tokenizer, lengths=[200], depths=[0, 1], each=4)

    def looks_up(prompts):
        texts = map(tokenizer.decode, prompts)
        return [f" {re.findall(r'is ([0-9]+)[.]', text)[0]}. And" for text in texts]

    found = find_needles(needles, looks_up)
    assert [(one.length, one.depth, one.found) for one in found] == [(200, 0, 4), (200, 1, 4)]
    assert all(one.share.value == one.share.low == one.share.high == 1 for one in found)
    # A number with more digits is another number.
    for wrong in (" unknown", "", "{}0"):
        answers = [wrong.format(needle.answer) for needle in needles]
        assert [one.found for one in find_needles(needles, lambda _, a=answers: a)] == [0, 0]


def test_what_cannot_be_made_is_refused(tokenizer, texts):
    with pytest.raises(ConfigError, match="length is 4 tokens, and a fact with its question takes"):
        make_needles(texts, tokenizer, lengths=[4])
    with pytest.raises(ConfigError, match=r"depth is 1\.5; it must be from 0 to 1"):
        make_needles(texts, tokenizer, lengths=[100], depths=[1.5])
    with pytest.raises(DataError, match="the longest prompt 1,000,000"):
        make_needles(texts, tokenizer, lengths=[1_000_000])
