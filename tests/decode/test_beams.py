"""Beam search against every text there is, and against its definition in plain Python."""

import functools
import itertools

import beam_reference as reference
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parameters import random_parameters

from llm_jax import models
from llm_jax.config import DecodeConfig, ModelConfig, override
from llm_jax.config.search import BeamConfig
from llm_jax.decode import Generator
from llm_jax.decode.beams import beam_search, front
from llm_jax.decode.beams.selection import drawn
from llm_jax.models import rows_of
from llm_jax.ops.sampling import row_keys
from llm_jax.ops.sampling.settings import off

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
PARAMS = random_parameters(MODEL, std=0.5)
PROMPTS = [[1, 2, 3, 0, 1, 2, 3], [3], [0, 2, 2]]
MODES = {"full": True, "heuristic": False, "never": "never"}
PENALTIES = [-1.0, 0.0, 0.6, 2.0]
# More than there are texts of at most MOST tokens.
ALL = V**MOST


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
            case = reference.Case(ALL, MOST, (STOP,), penalty)
            texts = reference.all_texts(next_log_probabilities(tuple(prompt)), case)
            assert len(texts) == 1 + 4 + 16 + 64 + 256
            same(got, texts[:20])


@pytest.mark.parametrize("beams", [1, 2, 4])
@pytest.mark.parametrize("mode", MODES)
def test_few_beams_find_what_the_definition_finds(mode, beams):
    for penalty in PENALTIES:
        config = BeamConfig(beams, beams, length_penalty=penalty, early_stopping=mode)
        for prompt, got in zip(PROMPTS, found(config)):
            case = reference.Case(beams, MOST, (STOP,), penalty, MODES[mode])
            same(got, reference.beam_search(next_log_probabilities(tuple(prompt)), case))


@pytest.mark.parametrize("groups", [2, 4])
def test_groups_find_what_the_definition_finds(groups):
    """At a strong penalty the groups part; at a weak one they choose the same tokens at times."""
    for penalty, diversity in itertools.product([0.0, 1.0], [0.1, 0.7, 10.0]):
        config = BeamConfig(
            4, 4, length_penalty=penalty, groups=groups, diversity_penalty=diversity
        )
        for prompt, got in zip(PROMPTS, found(config)):
            case = reference.Case(4, MOST, (STOP,), penalty, groups=groups, diversity=diversity)
            same(got, reference.beam_search(next_log_probabilities(tuple(prompt)), case))


def test_a_strong_diversity_gives_groups_other_first_tokens():
    config = BeamConfig(4, 4, groups=4, diversity_penalty=100.0, length_penalty=0.0)
    for row in found(config, new=1, settings=settings(3, stop_ids=())):
        assert len({tuple(hypothesis.ids) for hypothesis in row}) == 4


def test_rows_have_their_own_length_and_stop_ids():
    given = settings(3)
    stops = given.rules.stop_ids.at[1, :2].set(jnp.array([0, 2]))
    rules = given.rules._replace(stop_ids=stops, max_new=jnp.array([2, 4, 3]))
    config = BeamConfig(4, 4, early_stopping="never")
    together = found(config, settings=given._replace(rules=rules))
    cases = [(2, (STOP,)), (4, (0, 2)), (3, (STOP,))]
    for prompt, got, (most, stop_ids) in zip(PROMPTS, together, cases):
        case = reference.Case(4, most, stop_ids, 1.0, "never")
        want = reference.beam_search(next_log_probabilities(tuple(prompt)), case)
        same(got, want, stop_ids)


def test_a_row_does_not_depend_on_the_batch_around_it():
    drawn = BeamConfig(4, 4, sample=True)
    for config in (BeamConfig(4, 4), drawn):
        given = settings(3)._replace(seed=jnp.array([[0, 5], [0, 6], [0, 7]], jnp.uint32))
        together = found(config, settings=given)
        for row in range(3):
            only = jnp.array([row])
            (alone,) = found(config, [PROMPTS[row]], settings=given.gather(only))
            assert [h.ids for h in alone] == [h.ids for h in together[row]]
            scores = [h.score for h in alone], [h.score for h in together[row]]
            np.testing.assert_allclose(*scores, rtol=1e-5)


def test_another_value_compiles_nothing():
    found(BeamConfig(4, 1))
    programs = front._run._cache_size()
    found(
        BeamConfig(4, 3, length_penalty=0.3, early_stopping="never"),
        settings=settings(3, min_new=2),
    )
    found(BeamConfig(4, 2, early_stopping="full"), settings=settings(3, stop_ids=(1, 2)), new=MOST)
    assert front._run._cache_size() == programs


def test_rules_hold_in_every_text():
    given = settings(3, min_new=2, forced_first=3, forced_last=1)
    for row in found(BeamConfig(4, 4), settings=given):
        for text in row:
            assert text.ids[0] == 3 and len(text.ids) >= 2
            assert text.finish_reason == "stop" or text.ids[-1] == 1
        assert any(text.finish_reason == "length" for text in row)


def test_fewer_texts_come_back_where_rules_leave_fewer():
    def only_zero(logits, history):
        return jnp.where(jnp.arange(V)[None] == 0, logits, -jnp.inf)

    for row in found(BeamConfig(4, 4), own=only_zero):
        assert [text.ids for text in row] == [[0] * MOST]


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


PHRASES = {
    "one token": (((0,),),),
    "one": (((1, 1, 3),),),
    "two that overlap": (((1, 2),), ((2, 0),)),
    "of the same beginning": (((3, 1),), ((3, 2),)),
    "an alternative": (((0, 0, 0), (2, 1)), ((3,),)),
    "one that begins again": (((1, 1, 2),),),
}


@pytest.mark.parametrize("name", PHRASES)
def test_with_a_beam_for_every_text_the_best_that_has_the_phrases_is_found(name):
    config = BeamConfig(ALL, 8, required=PHRASES[name])
    for prompt, got in zip(PROMPTS, found(config)):
        case = reference.Case(ALL, MOST, (STOP,))
        texts = reference.all_texts(next_log_probabilities(tuple(prompt)), case)
        same(got, [text for text in texts if has_all(text.ids, PHRASES[name])][:8])


def has_all(ids, phrases):
    return all(any(reference.contains(ids, one) for one in phrase) for phrase in phrases)


@pytest.mark.parametrize("beams", [1, 3])
def test_few_beams_find_texts_that_have_the_phrases_of_their_row(beams):
    """However unlikely: there are as many new tokens as phrases have, or a few more."""
    rng = np.random.default_rng(beams)
    for _ in range(4):
        phrases = [[[rng.integers(0, 4, rng.integers(1, 4)).tolist()]] for _ in range(2)]
        phrases = [*phrases, [[[0, 1, 2, 3]], [[1]]]]
        for row, required in zip(found(BeamConfig(beams), new=6, required=phrases), phrases):
            wanted = [[tuple(alternative) for alternative in phrase] for phrase in required]
            assert len(row) == 1 and has_all(tuple(row[0].ids), wanted)


def test_without_phrases_the_rows_of_such_a_search_are_as_in_a_plain_one():
    config = BeamConfig(4, 4)
    got = found(config, required=[[], [[[1, 2]]], []])
    plain = found(config)
    assert [got[0], got[2]] == [plain[0], plain[2]]


def test_one_beam_is_greedy():
    """Also where a text stops; with "never" a longer text may still take its place."""
    generator = Generator(MODEL, PARAMS)
    greedy = generator.generate(PROMPTS, DecodeConfig(MOST, temperature=0.0), [STOP])
    for mode, penalty in itertools.product(["full", "heuristic"], [0.0, 1.0, 2.0]):
        config = BeamConfig(1, length_penalty=penalty, early_stopping=mode)
        assert [row[0].ids for row in found(config)] == greedy
