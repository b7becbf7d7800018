"""Bootstrap intervals and tests of a difference: known cases, and the draws of one generator."""

from itertools import pairwise, product

import numpy as np
import pytest

from llm_jax.evaluation.significance import sums
from llm_jax.evaluation.significance.intervals import (
    bootstrap_interval,
    interval_of_sums,
    mean_interval,
)
from llm_jax.evaluation.significance.paired import approximate_randomization, paired_bootstrap
from llm_jax.evaluation.significance.sums import ItemSums, means, ratios
from llm_jax.types import ConfigError, DataError


def test_the_interval_of_a_constant_is_the_constant():
    assert mean_interval([3.0] * 7)[:4] == (3, 3, 3, 7)


def test_the_interval_of_a_mean_is_that_of_the_normal_law():
    values = np.random.default_rng(0).normal(5, 2, 400)
    got = mean_interval(values, resamples=4000)
    half = 1.96 * values.std() / 20
    assert got.value == pytest.approx(values.mean())
    assert (got.high - got.low) / 2 == pytest.approx(half, rel=0.05)
    narrower = mean_interval(values, resamples=4000, confidence=0.5)
    assert (narrower.high - narrower.low) / 2 == pytest.approx(half * 0.674 / 1.96, rel=0.1)


def test_the_interval_of_any_metric_is_that_of_its_sums():
    values = np.random.default_rng(1).exponential(1, 60)
    by_indices = bootstrap_interval(lambda at: float(values[at].mean()), 60, resamples=300)
    by_sums = mean_interval(values, resamples=300)
    assert by_indices[:4] == pytest.approx(by_sums[:4])


def test_a_ratio_of_sums_is_resampled_together():
    # Each document has 2 nats a token, whatever its length.
    got = interval_of_sums(ratios([2, 20, 200], [1, 10, 100]), resamples=50)
    assert got[:3] == pytest.approx((2, 2, 2))


def test_blocks_draw_what_one_call_draws(monkeypatch):
    rng = np.random.default_rng(7)
    whole = np.stack([np.bincount(row, minlength=9) for row in rng.choice(9, (100, 9))])
    coins = np.random.default_rng(7).integers(2, size=(100, 9), dtype=bool)
    monkeypatch.setattr(sums, "_BLOCK_ELEMENTS", 9 * 33)
    weights = list(sums.resampled_weights(9, 100, 7))
    kept = list(sums.swaps(9, 100, 7))
    assert len(weights) == 4 and len(kept) == 4
    assert np.array_equal(np.concatenate(weights), whole)
    assert np.array_equal(np.concatenate(kept), coins)


def test_a_system_is_no_better_than_itself():
    one = means([0, 1, 1, 0, 1])
    assert paired_bootstrap(one, one).p_value == 1
    assert approximate_randomization(one, one, samples=100).p_value == 1
    # sacrebleu counts only what is strictly larger than nothing.
    found = approximate_randomization(one, one, samples=100, definition="sacrebleu")
    assert found.p_value == pytest.approx(1 / 101)


def test_approximate_randomization_estimates_the_share_of_all_swaps():
    first = np.array([1.0, 2, 3, 4, 5, 6, 7, 8])
    second = first + [2, 1, 1, -1, 2, 3, 1, -1]
    gaps = second - first
    signs = np.array(list(product([1, -1], repeat=8)))
    exact = (np.abs(signs @ gaps) >= abs(gaps.sum())).mean()
    got = approximate_randomization(means(first), means(second))
    assert got.difference == pytest.approx(1) and got.low is None
    assert got.p_value == pytest.approx(exact, abs=0.012)
    assert got.signature == "test:ar|samples:10000|seed:12345|p:two-sided"


def test_the_paired_bootstrap_is_a_test_of_the_mean_difference():
    rng = np.random.default_rng(3)
    first = rng.normal(0, 1, 200)
    second = first + 0.1 + rng.normal(0, 0.7, 200)
    gaps = second - first
    got = paired_bootstrap(means(first), means(second), samples=4000)
    z = gaps.mean() / (gaps.std() / np.sqrt(200))
    import math

    expected = math.erfc(z / math.sqrt(2))
    assert got.p_value == pytest.approx(expected, rel=0.3)
    assert got.low < got.difference < got.high
    published = paired_bootstrap(means(first), means(second), samples=4000, definition="sacrebleu")
    assert published.p_value < got.p_value


def test_p_values_fall_as_the_difference_grows():
    first = np.random.default_rng(5).normal(0, 1, 50)
    noise = np.random.default_rng(6).normal(0, 1, 50)
    p_values = [
        paired_bootstrap(means(first), means(first + noise - noise.mean() + gap)).p_value
        for gap in (0.0, 0.2, 0.4, 1.0)
    ]
    assert all(after <= before for before, after in pairwise(p_values))
    assert p_values[0] == 1 and p_values[-1] == pytest.approx(1 / 1001)


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda: mean_interval([]), DataError, "expects one value an item"),
        (lambda: mean_interval([1.0, np.nan]), DataError, r"values\[1\] is nan"),
        (lambda: mean_interval([1.0], resamples=0), ConfigError, "resamples is 0"),
        (lambda: mean_interval([1.0], confidence=95), ConfigError, "confidence is 95"),
        (lambda: bootstrap_interval(len, 0), DataError, "at least one item"),
        (lambda: interval_of_sums(ratios([1, 1], [0, 2])), DataError, "undefined in"),
        (lambda: paired_bootstrap(means([1.0]), means([1.0, 2.0])), DataError, "1 items and"),
        (lambda: paired_bootstrap(means([1.0]), means([1.0]), samples=0), ConfigError, "samples"),
        (lambda: paired_bootstrap(means([1.0]), means([2.0])), DataError, "one item cannot"),
        (
            lambda: paired_bootstrap(means([1.0]), means([1.0]), definition="one-sided"),
            ConfigError,
            "two-sided, sacrebleu",
        ),
        (
            lambda: approximate_randomization(
                ItemSums(np.zeros((0, 2)), len), ItemSums(np.zeros((0, 2)), len)
            ),
            DataError,
            "no items",
        ),
    ],
)
def test_what_cannot_be_resampled_is_named(call, error, said):
    with pytest.raises(error, match=said):
        call()
