"""Samplers: golden vectors (Hugging Face semantics), edge cases, exact distributions, and seeds per
row.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rounding import Rounded, assert_close, exp
from scipy import stats

from llm_jax.ops import categorical, filter_logits, greedy, min_p, row_keys, top_k, top_p

LOGITS = [2.0, 1.0, 0.0, -1.0, -2.0]  # probabilities .636409 .234122 .086129 .031685 .011656


FILTER = jax.jit(filter_logits, static_argnames="order")
DRAW = jax.jit(
    lambda logits, seeds, positions, *row: categorical(
        row_keys(seeds, positions), filter_logits(logits, *row)
    )
)


def filtered(logits=LOGITS, *, temperature=1.0, k=0, p=1.0, smallest_p=0.0, order="hf"):
    """Probabilities after the filters, for one row."""

    def row(x, dtype=jnp.float32):
        return jnp.full((1,), x, dtype)

    out = FILTER(
        jnp.asarray([logits], jnp.float32),
        row(temperature),
        row(k, jnp.int32),
        row(p),
        row(smallest_p),
        order=order,
    )
    return np.asarray(jax.nn.softmax(out[0]))


def kept(**settings):
    return set(np.flatnonzero(filtered(**settings)).tolist())


GOLDEN = [
    ({"p": 0.60}, {0}),
    ({"p": 0.65}, {0, 1}),
    ({"p": 0.90}, {0, 1, 2}),
    ({"p": 0.97}, {0, 1, 2, 3}),
    ({"temperature": 2.0, "p": 0.8}, {0, 1, 2}),  # temperature first
    ({"k": 3, "p": 0.9}, {0, 1}),  # renormalised after top-k
    ({"k": 2, "smallest_p": 0.1}, {0, 1}),
    ({"smallest_p": 0.05}, {0, 1, 2}),
    ({"smallest_p": 0.1}, {0, 1, 2}),
    ({"smallest_p": 0.3}, {0, 1}),
]


@pytest.mark.parametrize("settings, ids", GOLDEN)
def test_golden_vectors(settings, ids):
    assert kept(**settings) == ids


def test_golden_probabilities():
    for settings, left, golden in (
        ({}, 5, [0.636409, 0.234122, 0.086129, 0.031685, 0.011656]),
        ({"k": 2, "smallest_p": 0.1}, 2, [0.731059, 0.268941, 0, 0, 0]),
        ({"k": 3}, 3, [0.665241, 0.244728, 0.090031, 0, 0]),
    ):
        numerators = exp(Rounded(LOGITS) - LOGITS[0]).where(np.arange(5) < left)
        expected = numerators / numerators.sum()
        assert_close(filtered(**settings), expected)
        np.testing.assert_array_equal(expected.value.round(6), golden)


def test_orders_differ_where_the_definitions_do():
    # min-p .1 keeps {0, 1, 2}; top-p .9 of these (renormalised .665 .245 .090) keeps {0, 1}. The
    # other way round top-p keeps {0, 1, 2} and min-p all three.
    assert kept(p=0.9, smallest_p=0.1, order="vllm") == {0, 1}
    assert kept(p=0.9, smallest_p=0.1, order="hf") == {0, 1, 2}
    with pytest.raises(ValueError, match="unknown filter order 'sglang'; use hf or vllm"):
        kept(order="sglang")


def test_ties_at_the_kth_are_kept():
    tied = [1.0, 3.0, 1.0, 2.0, 1.0]
    assert kept(logits=tied, k=3) == {0, 1, 2, 3, 4}
    assert kept(logits=tied, k=2) == {1, 3}


@pytest.mark.parametrize("k", [0, 5, 6, 10_000])
def test_k_of_the_vocabulary_or_more_is_off(k):
    assert kept(k=k) == {0, 1, 2, 3, 4}


def test_edges_of_top_p():
    assert kept(p=1.0) == {0, 1, 2, 3, 4}
    assert kept(p=1e-9) == kept(p=0.0) == {0}
    # Equal tokens go by id: half of four equal ones is the first two.
    assert kept(logits=[0.0, 0.0, 0.0, 0.0], p=0.5) == {0, 1}
    assert kept(logits=[0.0, 0.0, 0.0, 0.0], p=1e-9) == {0}


def test_min_p_one_keeps_only_the_most_likely():
    assert kept(smallest_p=1.0) == {0}
    assert kept(smallest_p=0.0) == {0, 1, 2, 3, 4}


@pytest.mark.parametrize(
    "settings", [{}, {"k": 3}, {"p": 0.5}, {"smallest_p": 0.2}, {"k": 2, "p": 0.9, "order": "vllm"}]
)
def test_temperature_zero_is_the_lowest_most_likely_id(settings):
    logits = [0.5, 7.0, 7.0, -1.0]
    np.testing.assert_array_equal(filtered(logits, temperature=0.0, **settings), [0, 1, 0, 0])
    assert greedy(jnp.array([logits])).tolist() == [1]


def test_greedy_takes_the_first_of_the_largest():
    inf, nan = np.inf, np.nan
    rows = np.array(
        [
            [0, 3, 3, 1],
            [-inf, -inf, -inf, -inf],
            [-inf, -5, inf, inf],
            [1, nan, 9, nan],
            [nan, nan, nan, nan],
        ],
        np.float32,
    )
    assert greedy(jnp.asarray(rows)).tolist() == [1, 0, 2, 1, 0] == np.argmax(rows, axis=1).tolist()


def test_filters_leave_what_they_keep_untouched():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(3, 50)), jnp.float32)
    one = jnp.ones(3)
    for out in (top_k(logits, jnp.full(3, 7)), top_p(logits, one * 0.6), min_p(logits, one * 0.2)):
        keep = np.isfinite(out)
        assert (keep.sum(1) >= 1).all() and (keep.sum(1) < 50).all()
        np.testing.assert_array_equal(np.asarray(out)[keep], np.asarray(logits)[keep])


def test_every_row_has_its_own_settings():
    settings = [  # temperature, k, p, min-p
        (1.0, 0, 1.0, 0.0),
        (0.0, 0, 1.0, 0.0),
        (1.0, 2, 1.0, 0.0),
        (2.0, 0, 0.8, 0.0),
        (1.0, 0, 1.0, 0.3),
        (0.7, 3, 0.9, 0.1),
    ]
    t, k, p, m = zip(*settings)
    logits = jnp.tile(jnp.array([LOGITS]), (len(settings), 1))
    out = FILTER(logits, jnp.array(t), jnp.array(k), jnp.array(p), jnp.array(m))
    for row, (t, k, p, m) in zip(jax.nn.softmax(out), settings):
        np.testing.assert_array_equal(row, filtered(temperature=t, k=k, p=p, smallest_p=m))


WIDE = np.random.default_rng(3).normal(size=8) * 1.5


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"temperature": 0.5},
        {"temperature": 1.7, "k": 4},
        {"p": 0.8},
        {"smallest_p": 0.1},
        {"k": 6, "p": 0.9, "smallest_p": 0.05},
    ],
)
def test_draws_follow_the_exact_distribution(settings):
    """χ² of 200,000 draws at the one-in-a-million level; the distribution is worked out here, in
    float64.
    """
    draws = 200_000
    z = WIDE / settings.get("temperature", 1.0)
    ids = np.argsort(-z, kind="stable")

    def probs(z):
        return np.exp(z - z.max()) / np.exp(z - z.max()).sum()

    ids = ids[: settings.get("k", 8)]
    mass = np.cumsum(probs(z[ids]))
    ids = ids[: np.searchsorted(mass, settings.get("p", 1.0) - 1e-12) + 1]
    ids = ids[probs(z[ids]) >= settings.get("smallest_p", 0.0) * probs(z[ids]).max()]
    expected = np.zeros(8)
    expected[ids] = probs(z[ids])

    full = {"temperature": 1.0, "k": 0, "p": 1.0, "smallest_p": 0.0} | settings
    row = [jnp.full((1,), full[n]) for n in ("temperature", "k", "p", "smallest_p")]
    logits = jnp.broadcast_to(FILTER(jnp.asarray([WIDE], jnp.float32), *row), (draws, 8))
    keys = row_keys(jnp.arange(draws), jnp.arange(draws) % 17)
    counts = np.bincount(np.asarray(jax.jit(categorical)(keys, logits)), minlength=8)
    assert not counts[expected == 0].any()
    used = expected > 0
    chi2 = ((counts[used] - draws * expected[used]) ** 2 / (draws * expected[used])).sum()
    assert chi2 < stats.chi2.ppf(1 - 1e-6, max(used.sum() - 1, 1)), counts / draws


def draw(logits, seeds, positions, settings):
    columns = [np.array(c, dtype) for c, dtype in zip(zip(*settings), ("f4", "i4", "f4", "f4"))]
    return np.asarray(DRAW(logits, seeds, positions, *columns))


def test_a_rows_token_does_not_depend_on_the_batch_around_it():
    rng = np.random.default_rng(5)
    logits = rng.normal(size=(64, 100)).astype(np.float32)
    seeds, positions = rng.integers(0, 2**31, 64), rng.integers(0, 4096, 64)
    choices = [(1.0, 0, 1.0, 0.0), (0.7, 20, 0.9, 0.05), (1.3, 0, 0.7, 0.0), (0.0, 0, 1.0, 0.0)]
    settings = [choices[i % 4] for i in range(64)]
    whole = draw(logits, seeds, positions, settings)
    order = rng.permutation(64)
    permuted = draw(logits[order], seeds[order], positions[order], [settings[i] for i in order])
    np.testing.assert_array_equal(permuted, whole[order])
    for size in (1, 4):
        for start in range(0, 16, size):
            rows = slice(start, start + size)
            np.testing.assert_array_equal(
                draw(logits[rows], seeds[rows], positions[rows], settings[rows]), whole[rows]
            )


def test_seed_and_position_both_choose_the_token():
    logits = np.zeros((256, 1000), np.float32)
    settings = [(1.0, 0, 1.0, 0.0)] * 256
    zeros, count = np.zeros(256, np.int64), np.arange(256)
    by_position = draw(logits, zeros, count, settings)
    by_seed = draw(logits, count, zeros, settings)
    # 256 uniform draws out of 1000 have about 226 distinct values.
    assert len(set(by_position)) > 190 and len(set(by_seed)) > 190
    np.testing.assert_array_equal(by_position, draw(logits, zeros, count, settings))
