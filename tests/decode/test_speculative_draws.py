"""What speculative decoding draws and copies, against probabilities and texts written out."""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pairwise import parametrize
from parameters import random_parameters
from scipy.stats import chisquare
from speculative_models import BASE, next_logits

from llm_jax.config import DecodeConfig, override
from llm_jax.config.decode import PenaltyConfig, TokenConfig
from llm_jax.config.draft import DraftConfig, parse_draft
from llm_jax.decode import Generator
from llm_jax.decode.acceptance import draft_keys, verify_draws
from llm_jax.decode.drafts import Draft, first_layers, first_layers_config
from llm_jax.decode.lookup import look_up
from llm_jax.models import build
from llm_jax.ops.sampling.draws import categorical
from llm_jax.ops.sampling.history import history_of
from llm_jax.types import ConfigError

NEVER = 1e-5


def logs(*probabilities: float) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.log(np.array(probabilities, np.float32))


P = np.stack([logs(0.5, 0.3, 0.2), logs(0.1, 0.9, 0.0), logs(0.25, 0.25, 0.5)])
Q = np.stack([logs(0.2, 0.5, 0.3), logs(0.4, 0.4, 0.2)])


@functools.partial(jax.jit, static_argnames="rows")
def drawn(target, draft, rows: int):
    """``verify_draws`` of p [3, V] and q [2, V], for rows that differ in their seeds alone."""
    seeds = jnp.arange(rows)
    places = jnp.broadcast_to(7 + jnp.arange(3)[:, None], (3, rows))
    target = jnp.broadcast_to(target[:, None], (3, rows, target.shape[1]))
    draft = jnp.broadcast_to(draft[:, None], (2, rows, draft.shape[1]))
    drafts = jnp.stack([categorical(draft_keys(seeds, places[g]), draft[g]) for g in range(2)])
    # Every fourth row has one drafted token, and every fourth none.
    counts = jnp.array([2, 1, 2, 0])[jnp.arange(rows) % 4]
    found = verify_draws(target, draft, drafts, counts, seeds=seeds, places=places)
    return drafts, counts, found


def follows(ids: np.ndarray, logits: np.ndarray) -> bool:
    """Whether tokens have these probabilities, by chi-square; none may have a probability of 0."""
    p = np.exp(logits.astype(np.float64))
    counts = np.bincount(ids, minlength=len(p))
    may_come = p > 0
    expected = len(ids) * p[may_come] / p.sum()
    return counts[~may_come].sum() == 0 and chisquare(counts[may_come], expected).pvalue > NEVER


def test_drawn_tokens_have_the_probabilities_of_the_model():
    """The golden case: accepted with .7, else token 0; chi-square over 100,000 draws."""
    drafts, counts, (tokens, accepted) = jax.device_get(drawn(P, Q, 100_000))
    assert follows(tokens[0], P[0])
    assert follows(drafts[0], Q[0])
    was_drafted = counts > 0
    share = np.mean(accepted[was_drafted] > 0)
    assert abs(share - 0.7) < 4 * (0.7 * 0.3 / was_drafted.sum()) ** 0.5
    assert set(tokens[0][was_drafted & (accepted == 0)]) == {0}
    # The next tokens do not depend on those before, nor on how many were accepted.
    assert follows(tokens[1][accepted >= 1], P[1])
    assert follows(tokens[2][accepted == 2], P[2])
    assert (accepted <= counts).all()
    for place in range(2):
        kept = accepted > place
        assert (tokens[place][kept] == drafts[place][kept]).all()


def test_equal_distributions_accept_everything():
    _, counts, found = jax.device_get(drawn(P, P[:2], 100_000))
    assert (found.accepted == counts).all()


SMALL = override(BASE, {"vocab_size": 6, "num_layers": 2, "max_length": 8})
PROMPT = [1, 3]
SETTINGS = DecodeConfig(
    max_new_tokens=3,
    temperature=1.3,
    top_k=4,
    penalties=PenaltyConfig(repetition_penalty=1.4),
    tokens=TokenConfig(logit_bias=((2, 0.7),)),
)


def probabilities(model, params) -> np.ndarray:
    """[6, 6, 6], of each text of three tokens, by the definitions of the settings."""
    joint = np.zeros((6, 6, 6))
    for first, second in itertools.product(range(6), repeat=2):
        logits = next_logits(model, params, PROMPT, [first, second, 0]).astype(np.float64)
        seen = [{1, 3}, {1, 3, first}, {1, 3, first, second}]
        p = [filtered(z, ids) for z, ids in zip(logits, seen)]
        joint[first, second] = p[0][first] * p[1][second] * p[2]
    return joint


def filtered(z: np.ndarray, seen: set[int]) -> np.ndarray:
    z = z.copy()
    z[2] += 0.7
    for id in seen:
        z[id] = z[id] / 1.4 if z[id] > 0 else z[id] * 1.4
    z = z / 1.3
    z[z < np.sort(z)[-4]] = -np.inf
    p = np.exp(z - z.max())
    return p / p.sum()


@parametrize(
    "kind, draws",
    itertools.product(["model", "early_exit", "lookup"], [6_000, 100_000]),
    by_default=[("early_exit", 6_000)],
)
def test_texts_have_the_probabilities_of_the_model_after_all_processors(kind, draws):
    model = build(SMALL)
    params = random_parameters(model)
    config = DraftConfig(kind, tokens=2, layers=1 if kind == "early_exit" else 0)
    draft = Draft(config)
    if kind == "model":
        other = build(override(SMALL, {"num_layers": 1, "embed_dim": 8}))
        draft = Draft(config, other, random_parameters(other, seed=9))
    generator = Generator(model, params, draft=draft)
    counts = np.zeros((6, 6, 6))
    accepted = 0
    drafted = 0
    rows = 2_000
    for start in range(0, draws, rows):
        found = generator.complete([PROMPT] * rows, SETTINGS, seeds=range(start, start + rows))
        for (completion,) in found:
            counts[tuple(completion.ids)] += 1
            accepted += completion.accepted
            drafted += completion.drafted
    expected = draws * probabilities(model, params)
    assert counts[expected == 0].sum() == 0
    common = expected >= 5
    rare = (expected > 0) & ~common
    groups = [*zip(counts[common], expected[common])]
    if rare.any():
        groups.append((counts[rare].sum(), expected[rare].sum()))
    assert chisquare(*zip(*groups)).pvalue > NEVER
    assert len(groups) > 30 and 0 < accepted < drafted


def copied(text: list[int], tokens: int, ngram: int, source: list[int]) -> list[int]:
    """What ``look_up`` finds, one place after another."""
    best = (0, 0, -1, [])
    places = [(where, i) for where in (source, text) for i in range(1, len(where))]
    for order, (where, i) in enumerate(places):
        matched = 0
        while matched < min(ngram, i, len(text)) and where[i - 1 - matched] == text[-1 - matched]:
            matched += 1
        following = where[i : i + tokens]
        if matched:
            best = max(best, (matched, len(following), order, following))
    return best[-1]


@pytest.mark.parametrize("tokens, ngram", [(3, 2), (5, 4), (1, 1)])
def test_lookup_copies_what_followed_the_longest_match(tokens, ngram):
    rng = np.random.default_rng(0)
    texts = [rng.integers(0, 3, n).tolist() for n in rng.integers(1, 17, 64)]
    sources = [rng.integers(0, 3, n).tolist() for n in rng.integers(1, 13, 64)]

    def padded(rows, width):
        return jnp.asarray([row + [1] * (width - len(row)) for row in rows])

    lengths = jnp.asarray([len(row) for row in texts])
    history = history_of(
        padded(texts, 16),
        lengths,
        20,
        source_ids=padded(sources, 12),
        source_length=jnp.asarray([len(row) for row in sources]),
    )
    run = jax.jit(look_up, static_argnums=(1, 2), static_argnames=("source",))
    for source in (False, True):
        ids, counts = run(history, tokens, ngram, source=source)
        for text, own_source, row, n in zip(texts, sources, ids.tolist(), counts.tolist()):
            assert row[:n] == copied(text, tokens, ngram, own_source if source else [])


def test_the_first_layers_of_a_model_are_a_model():
    config = override(BASE, {"first_layers.count": 2, "first_layers.mlp_dim": 20, "num_layers": 4})
    params = random_parameters(build(config))
    for layers in (1, 2, 3):
        smaller = build(first_layers_config(config, layers))
        found = first_layers(params, layers)
        wanted = jax.eval_shape(smaller.init, jax.random.key(0))
        assert jax.tree.map(lambda a: a.shape, found) == jax.tree.map(lambda a: a.shape, wanted)


@pytest.mark.parametrize(
    "text, wanted",
    [
        ("lookup", (DraftConfig("lookup", tokens=6), "")),
        ("lookup:2", (DraftConfig("lookup", tokens=6, ngram=2), "")),
        ("early_exit:4", (DraftConfig("early_exit", tokens=6, layers=4), "")),
        ("runs/small", (DraftConfig("model", tokens=6), "runs/small")),
        ("gs://bucket/run:1", (DraftConfig("model", tokens=6), "gs://bucket/run:1")),
    ],
)
def test_a_draft_as_a_command_line_has_it(text, wanted):
    assert parse_draft(text, 6) == wanted


@pytest.mark.parametrize("text", ["", "early_exit", "early_exit:", "early_exit:0", "lookup:x"])
def test_a_draft_that_is_none_is_refused(text):
    with pytest.raises(ConfigError, match=r"draft is|early_exit and layers 0"):
        parse_draft(text)
