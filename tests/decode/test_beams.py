"""Beam search against every text there is, and against its definition in plain Python."""

import functools
import itertools

import beam_reference as reference
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pairwise import parametrize
from parameters import random_parameters

from llm_jax import models
from llm_jax.config import DecodeConfig, ModelConfig, override
from llm_jax.config.search import BeamConfig
from llm_jax.decode import Generator
from llm_jax.decode.beams import beam_search
from llm_jax.decode.beams.selection import drawn
from llm_jax.models import rows_of
from llm_jax.ops.sampling import row_keys
from llm_jax.ops.sampling.settings import off
from llm_jax.types import ConfigError

V, MOST, STOP = 5, 4, 4
CONFIG = override(
    ModelConfig(),
    {
        "vocab_size": V,
        "num_layers": 1,
        "embed_dim": 32,
        "attention.num_heads": 4,
        "attention.num_kv_heads": 2,
        "mlp.hidden_dim": 48,
        "max_length": 128,
        "attention.window_pattern": (5, 0),
    },
)
MODEL = models.build(CONFIG)
PARAMS = random_parameters(MODEL, std=0.3)
PROMPTS = [[1, 2, 3, 0, 1, 2, 3], [3], [0, 2, 2]]
MODES = {"full": True, "heuristic": False, "never": "never"}
PENALTIES = [-1.0, 0.0, 0.6, 2.0]
# As many as the candidates of the last step.
ALL = (V - 1) ** (MOST - 1) * V


@pytest.fixture(scope="module", autouse=True)
def biases_only():
    with reference.biases_only():
        yield


def settings(rows: int, *, stop_ids=(STOP,), vocabulary=V, **rules):
    """Settings that are off but for rules, of which each is one value or one for each row."""
    out = off(rows, vocabulary)
    stops = np.full((rows, 8), -1, np.int32)
    stops[:, : len(stop_ids)] = stop_ids
    given = {name: jnp.full((rows,), value, jnp.int32) for name, value in rules.items()}
    return out._replace(rules=out.rules._replace(stop_ids=jnp.asarray(stops), **given))


def found(config, prompts=PROMPTS, new=MOST, **rest):
    rest = {"settings": settings(len(prompts))} | rest
    return beam_search(MODEL, PARAMS, prompts, config, max_new_tokens=new, **rest)


@functools.cache
def next_log_probabilities(prompt: tuple[int, ...], most: int = MOST):
    """The model of ``reference``: what full forward passes say after each text."""
    texts = [t for n in range(most) for t in itertools.product(range(V), repeat=n)]
    tokens = np.zeros((len(texts), len(prompt) + most), np.int32)
    for row, text in zip(tokens, texts):
        row[: len(prompt) + len(text)] = (*prompt, *text)
    lengths = np.array([len(prompt) + len(text) for text in texts])

    @jax.jit
    def forward(params, tokens, lengths):
        hidden = MODEL.apply(params, rows_of(tokens, lengths)).hidden
        last = jnp.take_along_axis(hidden, lengths[:, None, None] - 1, axis=1)[:, 0]
        return jax.nn.log_softmax(MODEL.logits(params, last))

    known = dict(zip(texts, np.asarray(forward(PARAMS, tokens, lengths), np.float64)))
    return known.__getitem__


def case(beams, **more):
    return reference.Case(beams, MOST, (STOP,), **more)


def same(got, want, stop_ids=(STOP,)):
    """Whether hypotheses are the reference's texts."""
    assert len(got) == len(want)
    for hypothesis, text in zip(got, want):
        stopped = text.ids[-1] in stop_ids
        assert tuple(hypothesis.ids) == (text.ids[:-1] if stopped else text.ids)
        assert hypothesis.finish_reason == ("stop" if stopped else "length")
        np.testing.assert_allclose(hypothesis.score, text.score, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("mode", MODES)
def test_with_a_beam_for_every_text_the_best_of_all_are_found(mode):
    for penalty in PENALTIES:
        config = BeamConfig(ALL, 20, length_penalty=penalty, early_stopping=mode)
        for prompt, got in zip(PROMPTS, found(config)):
            model = next_log_probabilities(tuple(prompt))
            texts = reference.all_texts(model, case(ALL, length_penalty=penalty))
            assert len(texts) == 1 + 4 + 16 + 64 + 256
            same(got, texts[:20])


@pytest.mark.parametrize("beams", [1, 4])
@pytest.mark.parametrize("mode", MODES)
def test_few_beams_find_what_the_definition_finds(mode, beams):
    for penalty in PENALTIES:
        config = BeamConfig(beams, beams, length_penalty=penalty, early_stopping=mode)
        searched = case(beams, length_penalty=penalty, mode=MODES[mode])
        for prompt, got in zip(PROMPTS, found(config)):
            same(got, reference.beam_search(next_log_probabilities(tuple(prompt)), searched))


@pytest.mark.parametrize("groups", [2, 4])
def test_groups_find_what_the_definition_finds(groups):
    """A weak penalty leaves groups with the same tokens at times, and a strong one does not."""
    for penalty, diversity in itertools.product([0.0, 1.0], [0.1, 0.7, 10.0]):
        config = BeamConfig(
            4, 4, length_penalty=penalty, groups=groups, diversity_penalty=diversity
        )
        searched = case(4, length_penalty=penalty, groups=groups, diversity=diversity)
        for prompt, got in zip(PROMPTS, found(config)):
            same(got, reference.beam_search(next_log_probabilities(tuple(prompt)), searched))
    for got in found(config, settings=settings(3, stop_ids=())):
        assert len({text.ids[0] for text in got}) >= groups


def test_rows_have_their_own_length_and_stop_ids():
    given = settings(3)
    stops = given.rules.stop_ids.at[1, :2].set(jnp.array([0, 2]))
    rules = given.rules._replace(stop_ids=stops, max_new=jnp.array([2, 4, 3]))
    config = BeamConfig(4, 4, early_stopping="never")
    together = found(config, settings=given._replace(rules=rules))
    cases = [(2, (STOP,)), (4, (0, 2)), (3, (STOP,))]
    for prompt, got, (most, stop_ids) in zip(PROMPTS, together, cases):
        searched = reference.Case(4, most, stop_ids, 1.0, "never")
        want = reference.beam_search(next_log_probabilities(tuple(prompt)), searched)
        same(got, want, stop_ids)


@pytest.mark.parametrize("sample", [False, True])
def test_a_row_does_not_depend_on_the_batch_around_it(sample):
    config = BeamConfig(4, 4, sample=sample)
    given = settings(3)._replace(seed=jnp.array([[0, 5], [0, 6], [0, 7]], jnp.uint32))
    together = found(config, settings=given)
    order = [2, 0, 0]
    others = found(config, [PROMPTS[i] for i in order], settings=given.gather(jnp.array(order)))
    assert others == [together[i] for i in order]
    if not sample:
        return
    (alone,) = found(config, PROMPTS[1:2], settings=given.gather(jnp.array([1])))
    for one, other in zip(alone, together[1], strict=True):
        assert (one.ids, one.finish_reason) == (other.ids, other.finish_reason)
        np.testing.assert_allclose(one.score, other.score, rtol=1e-5)


def test_other_seeds_draw_other_texts():
    seeds = jnp.stack([jnp.zeros(3, jnp.uint32), jnp.arange(3, dtype=jnp.uint32)], axis=1)
    prompts = [PROMPTS[0]] * 3
    drawn_texts = found(
        BeamConfig(4, 4, sample=True), prompts, settings=settings(3)._replace(seed=seeds)
    )
    assert len({tuple(tuple(text.ids) for text in row) for row in drawn_texts}) == 3
    plain = found(BeamConfig(4, 4), prompts)
    assert len({tuple(tuple(text.ids) for text in row) for row in plain}) == 1


def test_draws_are_without_replacement_and_as_likely_as_one_after_another():
    rows = 4000
    seeds = jnp.stack([jnp.zeros(rows, jnp.uint32), jnp.arange(rows, dtype=jnp.uint32)], axis=1)
    keys = row_keys(seeds, jnp.zeros(rows, jnp.int32))
    p = np.array([0.4, 0.3, 0.15, 0.1, 0.05])
    total = jnp.broadcast_to(jnp.log(jnp.asarray(p)), (rows, 1, V))
    wanted = jnp.full((rows,), 2)
    out = jax.jit(drawn, static_argnums=1)(total, 3, wanted, keys)
    assert np.all(np.isneginf(out.score[:, 2])), "only two are drawn"
    assert np.all(np.diff(out.score[:, :2]) <= 0), "the best is first"
    sets = np.sort(out.token[:, :2], axis=1)
    pairs = list(itertools.combinations(range(V), 2))
    counts = np.array([np.sum(np.all(sets == pair, axis=1)) for pair in pairs])
    expected = [p[a] * p[b] * (1 / (1 - p[a]) + 1 / (1 - p[b])) for a, b in pairs]
    expected = rows * np.array(expected)
    assert counts.sum() == rows
    # 9 degrees of freedom; it is more in 1 of 10,000 experiments.
    assert np.sum((counts - expected) ** 2 / expected) < 33.7


# Those of a row each: one token; several; two that overlap; two that begin alike; an alternative
# of another length; one that begins again where it does not go on.
PHRASES = [
    [[[0]]],
    [[[1, 1, 3]]],
    [[[1, 2]], [[2, 0]]],
    [[[3, 1]], [[3, 2]]],
    [[[0, 0, 0], [2, 1]], [[3]]],
    [[[1, 1, 2]]],
    [],
]


def test_with_a_beam_for_every_text_the_best_that_has_the_phrases_is_found():
    prompts = [PROMPTS[row % 3] for row in range(len(PHRASES))]
    rows = found(BeamConfig(ALL, 8), prompts, required=PHRASES)
    for prompt, got, phrases in zip(prompts, rows, PHRASES):
        texts = reference.all_texts(next_log_probabilities(tuple(prompt)), case(ALL))
        same(got, [text for text in texts if has_all(text.ids, phrases)][:8])


def has_all(ids, phrases):
    return all(any(reference.contains(ids, tuple(one)) for one in phrase) for phrase in phrases)


@parametrize("beams", [(1,), (4,)], by_default=[(4,)])
def test_few_beams_find_texts_with_the_phrases_of_their_row(beams):
    """However unlikely: there are as many new tokens as phrases have, or a few more. A row without
    phrases finds what it finds in a plain search.
    """
    rng = np.random.default_rng(beams)
    for _ in range(4):
        one, other = (rng.integers(0, 4, rng.integers(1, 3)).tolist() for _ in range(2))
        phrases = [[[one]] if one == other else [[one], [other]], [[[0, 1, 2, 3]]], []]
        rows = found(BeamConfig(beams, beams), required=phrases)
        for got, required in zip(rows, phrases):
            assert got and all(has_all(tuple(text.ids), required) for text in got)
        model = next_log_probabilities(tuple(PROMPTS[2]))
        same(rows[2], reference.beam_search(model, case(beams)))


def test_a_phrase_that_no_text_has_is_named_with_its_row():
    banned = jnp.zeros((3, V)).at[1, 2].set(-jnp.inf)
    given = settings(3)
    given = given._replace(rules=given.rules._replace(bias=banned))
    phrases = [[[[2]]], [[[0]], [[1, 2]]], [[[0, 1, 2, 3]]]]
    with pytest.raises(ConfigError, match=r"row 1: .* required phrase 1, \[1, 2\]"):
        found(BeamConfig(4), settings=given, required=phrases)


def test_one_beam_is_greedy():
    """Also where a text stops; with "never" a longer text may still take its place."""
    generator = Generator(MODEL, PARAMS)
    greedy = generator.generate(PROMPTS, DecodeConfig(MOST, temperature=0.0), [STOP])
    for mode, penalty in itertools.product(["full", "heuristic"], [0.0, 1.0, 2.0]):
        config = BeamConfig(1, length_penalty=penalty, early_stopping=mode)
        assert [row[0].ids for row in found(config)] == greedy
