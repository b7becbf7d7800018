"""Filters against their plain definitions and the golden vectors of Hugging Face's semantics."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import plain_sampling as plain
import pytest

from llm_jax.ops import (
    epsilon_cutoff,
    eta_cutoff,
    min_p,
    top_h,
    top_k,
    top_p,
    typical_p,
    warp_logits,
)
from llm_jax.ops.sampling import ORDERS, Filters, filters_off

GOLDEN = np.float32([2, 1, 0, -1, -2])
FILTERS = {
    "top_k": top_k,
    "top_p": top_p,
    "min_p": min_p,
    "typical_p": typical_p,
    "epsilon": epsilon_cutoff,
    "eta": eta_cutoff,
    "top_h": top_h,
}
WARP = jax.jit(warp_logits, static_argnames=("order", "keep"))


def kept(out):
    return set(np.flatnonzero(np.isfinite(out)).tolist())


@pytest.mark.parametrize(
    ("name", "setting", "ids"),
    [
        ("typical_p", 0.2, {1}),
        ("typical_p", 0.5, {0, 1}),
        ("typical_p", 0.9, {0, 1, 2}),
        ("epsilon", 0.02, {0, 1, 2, 3}),
        ("epsilon", 0.05, {0, 1, 2}),
        ("epsilon", 0.2, {0, 1}),
        ("epsilon", 0.9, {0}),
        ("eta", 0.2, {0, 1}),
        ("eta", 0.9999, {0}),
        # Parts of the entropy, in order: .2876, .3399, .2112, .1094, .0519 of 1.
        ("top_h", 0.28, {0}),
        ("top_h", 0.63, {0, 1}),
        ("top_h", 0.84, {0, 1, 2}),
        ("top_p", 0.65, {0, 1}),
        ("min_p", 0.3, {0, 1}),
        ("top_k", 2, {0, 1}),
    ],
)
def test_golden_vectors(name, setting, ids):
    assert kept(FILTERS[name](GOLDEN, setting)) == ids


OFF = [(name, plain.OFF[name]) for name in FILTERS]


@pytest.mark.parametrize(("name", "setting"), OFF)
def test_a_filter_that_is_off_changes_nothing(name, setting):
    logits = np.float32([[0.5, -np.inf, 0.5, 3.0, -np.inf], [-np.inf] * 5])
    np.testing.assert_array_equal(FILTERS[name](logits, setting), logits)


def random_logits(rng, rows, vocab_size):
    """Rows of various sharpness, some with ties, some with tokens that cannot come."""
    logits = rng.normal(size=(rows, vocab_size)) * rng.choice([0.3, 1, 3, 10], size=(rows, 1))
    logits[::5] = np.round(logits[::5] * 4) / 4
    logits[::3][rng.random((len(logits[::3]), vocab_size)) < 0.3] = -np.inf
    logits[:, 0] = 0.125
    return logits.astype(np.float32)


def random_setting(rng, name, rows):
    if name == "top_k":
        return rng.choice([0, 1, 2, 5, 50, 200, 5000], size=rows).astype(np.int32)
    if name in ("epsilon", "eta", "min_p"):
        return np.float32(10 ** -rng.uniform(0, 4, rows))
    return rng.uniform(0.01, 1, rows).astype(np.float32)


@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize(("vocab_size", "keep"), [(8, 3), (300, 1)])
def test_a_filter_keeps_what_its_definition_does(name, vocab_size, keep):
    rng = np.random.default_rng([len(name), vocab_size, keep])
    rows = 60
    logits = random_logits(rng, rows, vocab_size)
    settings = random_setting(rng, name, rows)
    run = top_h if name == "top_h" else partial(FILTERS[name], keep=keep)
    expected = [plain.FILTERS[name](z, s, keep) for z, s in zip(logits.astype(float), settings)]
    out = np.asarray(jax.jit(run)(logits, settings))
    np.testing.assert_array_equal(out, np.array(expected))


def random_filters(rng, rows):
    """Settings of which each row uses some, at other temperatures."""
    settings = {name: random_setting(rng, name, rows) for name in FILTERS}
    settings["temperature"] = rng.choice([0.3, 0.8, 1, 2], size=rows).astype(np.float32)
    for name, off in plain.OFF.items():
        settings[name] = np.where(rng.random(rows) < 0.5, off, settings[name])
    return Filters(**{name: np.asarray(settings[name]) for name in Filters._fields})


def row_of(filters, i):
    return {name: value[i] for name, value in filters._asdict().items()}


@pytest.mark.parametrize(
    ("order", "vocab_size", "keep"), [("hf", 8, 1), ("hf", 400, 2), ("vllm", 400, 1)]
)
def test_all_filters_in_their_order(order, vocab_size, keep):
    """At 400 tokens, rows whose first filter leaves few of them go another way than others."""
    rng = np.random.default_rng([vocab_size, keep])
    rows = 120
    logits = random_logits(rng, rows, vocab_size)
    filters = random_filters(rng, rows)
    filters = filters._replace(
        temperature=filters.temperature.astype(np.float32), top_k=filters.top_k.astype(np.int32)
    )
    out = np.asarray(WARP(logits, filters, order=order, keep=keep))
    for i, z in enumerate(logits):
        expected = plain.filtered(z.astype(float), row_of(filters, i), order, keep)
        np.testing.assert_allclose(out[i], expected, rtol=1e-6, err_msg=str(row_of(filters, i)))


def test_orders_are_those_of_the_definitions():
    assert {name: list(order) for name, order in ORDERS.items()} == plain.FILTER_ORDER


def test_a_row_does_not_depend_on_the_settings_of_others():
    """To the bit, for rows alone and among rows that go the other way."""
    rng = np.random.default_rng(11)
    rows = 120
    logits = random_logits(rng, rows, 400)
    filters = random_filters(rng, rows)
    filters = filters._replace(
        temperature=filters.temperature.astype(np.float32), top_k=filters.top_k.astype(np.int32)
    )
    together = np.asarray(WARP(logits, filters, keep=2))
    for i in range(12):
        alone = WARP(logits[i : i + 1], jax.tree.map(lambda a, i=i: a[i : i + 1], filters), keep=2)
        np.testing.assert_array_equal(alone[0], together[i])


def test_ties_at_the_border_of_top_p_go_by_id():
    logits = np.zeros((1, 400), np.float32)
    assert kept(top_p(logits, 0.0999)[0]) == set(range(40))
    logits[0, 7] = 5
    # exp(5) of exp(5) + 399.
    mass = np.exp(5) / (np.exp(5) + 399)
    assert kept(top_p(logits, mass - 1e-3)[0]) == {7}
    assert kept(top_p(logits, mass + 1.5 / (np.exp(5) + 399))[0]) == {0, 1, 7}


def test_numbers_around_zero_are_ordered():
    tiny = 1e-30
    logits = np.float32([[0.0, -0.0, tiny, -tiny, 1.0, -1.0]])
    assert kept(top_k(logits, 2)[0]) == {2, 4}
    assert kept(top_k(logits, 3)[0]) == {0, 1, 2, 4}
    assert kept(top_k(logits, 5)[0]) == {0, 1, 2, 3, 4}


@pytest.mark.parametrize("name", FILTERS)
def test_a_row_without_tokens_stays_one(name):
    logits = np.full((2, 6), -np.inf, np.float32)
    logits[1, 2] = 3.0
    out = FILTERS[name](logits, 2 if name == "top_k" else 0.4)
    np.testing.assert_array_equal(out, logits)


def test_typical_may_leave_out_what_is_most_likely_but_not_at_temperature_0():
    filters = filters_off((2,))._replace(
        temperature=jnp.array([1.0, 0.0]), typical_p=jnp.array([0.2, 0.2])
    )
    out = WARP(np.stack([GOLDEN, GOLDEN]), filters)
    assert [kept(row) for row in out] == [{1}, {0}]


def test_a_temperature_near_0_does_not_overflow():
    logits = np.float32([[3e4, 2e4, -3e4, -np.inf]])
    filters = filters_off((1,))._replace(temperature=jnp.array([1e-37]))
    np.testing.assert_array_equal(jax.nn.softmax(WARP(logits, filters)), [[1, 0, 0, 0]])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_other_dtypes(dtype):
    with jax.enable_x64(dtype == "float64"):
        logits = jnp.asarray(random_logits(np.random.default_rng(2), 8, 300), dtype)
        filters = filters_off((8,))._replace(top_p=jnp.full(8, 0.7), top_k=jnp.full(8, 40))
        out = WARP(logits, filters)
        assert out.dtype == (dtype if dtype == "float64" else "float32")
        for z, row in zip(np.asarray(logits, np.float64), np.asarray(out)):
            expected = plain.filtered(z, {"top_k": 40, "top_p": np.float32(0.7)})
            assert kept(row) == kept(expected)


def test_errors_name_the_setting():
    with pytest.raises(ValueError, match="setting mass has shape \\(3,\\)"):
        typical_p(GOLDEN[None], jnp.ones(3))
    with pytest.raises(ValueError, match="setting k is float32; it must be an integer"):
        top_k(GOLDEN, 2.0)
    with pytest.raises(ValueError, match="unknown filter order 'jetstream'; use hf or vllm"):
        warp_logits(GOLDEN, filters_off(()), order="jetstream")
    with pytest.raises(ValueError, match="setting eta has shape \\(2,\\)"):
        warp_logits(GOLDEN, filters_off(())._replace(eta=jnp.zeros(2)))
