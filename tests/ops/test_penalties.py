"""Penalties and temperature: golden values, and one setting or one for each row."""

import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.ops import (
    filter_logits,
    frequency_penalty,
    presence_penalty,
    repetition_penalty,
    scale_temperature,
    token_counts,
)

LOGITS = jnp.float32([[2, 1, 0, -1, -2]])
COUNTS = jnp.array([[3, 0, 0, 1, 0]])


def test_counts_leave_out_what_does_not_count():
    ids = jnp.array([[4, 1, 1, 0], [2, 2, 2, 2]])
    counted = jnp.array([[True, True, True, False], [False, False, False, False]])
    assert token_counts(ids, counted, 5).tolist() == [[0, 2, 0, 0, 1], [0, 0, 0, 0, 0]]


def test_repetition_divides_what_is_positive_and_multiplies_what_is_negative():
    out = repetition_penalty(LOGITS, COUNTS, 1.2)
    np.testing.assert_allclose(out, [[1.6666667, 1, 0, -1.2, -2]], rtol=1e-6)


def test_repetition_of_log_probabilities_does_not_see_a_constant():
    shifted = [repetition_penalty(LOGITS + c, COUNTS, 1.3, normalize=True) for c in (0, 10)]
    np.testing.assert_allclose(shifted[0], shifted[1], atol=2e-6)
    chances = np.log([0.636409, 0.234122, 0.086129, 0.031685, 0.011656])
    np.testing.assert_allclose(shifted[0][0], chances * [1.3, 1, 1, 1.3, 1], rtol=1e-4)


def test_frequency_counts_and_presence_does_not():
    np.testing.assert_allclose(frequency_penalty(LOGITS, COUNTS, 0.5), [[0.5, 1, 0, -1.5, -2]])
    np.testing.assert_allclose(presence_penalty(LOGITS, COUNTS, 0.5), [[1.5, 1, 0, -1.5, -2]])


@pytest.mark.parametrize(
    ("penalize", "off"),
    [(repetition_penalty, 1.0), (frequency_penalty, 0.0), (presence_penalty, 0.0)],
)
def test_each_row_has_its_own(penalize, off):
    two = jnp.concatenate([LOGITS, LOGITS])
    counts = jnp.concatenate([COUNTS, COUNTS])
    out = penalize(two, counts, jnp.array([off, 1.5]))
    np.testing.assert_array_equal(out[0], LOGITS[0])
    np.testing.assert_allclose(out[1:], penalize(LOGITS, COUNTS, 1.5), rtol=1e-6)
    with pytest.raises(ValueError, match="penalty has shape"):
        penalize(two, counts, jnp.ones(3))
    with pytest.raises(ValueError, match="expected \\[B, V\\]"):
        penalize(two, COUNTS, 1.5)


@pytest.mark.parametrize("penalize", [repetition_penalty, frequency_penalty, presence_penalty])
def test_a_token_that_a_filter_removed_stays_removed(penalize):
    logits = LOGITS.at[0, 0].set(-jnp.inf)
    assert penalize(logits, COUNTS, 1.5)[0, 0] == -jnp.inf


def test_temperature_divides_and_0_leaves_the_most_likely_token():
    np.testing.assert_array_equal(scale_temperature(LOGITS, 2.0), LOGITS / 2)
    none = -np.inf
    np.testing.assert_array_equal(scale_temperature(LOGITS, 0), [[2, none, none, none, none]])
    rows = scale_temperature(jnp.concatenate([LOGITS, LOGITS]), jnp.array([0.5, 0.0]))
    np.testing.assert_array_equal(rows[0], LOGITS[0] * 2)
    assert jnp.isfinite(rows[1]).sum() == 1


def test_temperature_is_that_of_the_filters():
    two = jnp.concatenate([LOGITS, LOGITS])
    temperature = jnp.array([0.0, 0.7])
    off = jnp.zeros(2, jnp.int32), jnp.ones(2), jnp.zeros(2)
    np.testing.assert_array_equal(
        scale_temperature(two, temperature), filter_logits(two, temperature, *off)
    )
