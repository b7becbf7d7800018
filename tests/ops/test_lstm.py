"""Long short-term memory: the cell by hand, the scan by its definition, padding, segments, and the
cache of its state.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import core

from llm_jax.ops import LstmState, lstm, lstm_cell, segment_begins
from llm_jax.ops.cache import Chunk, recurrent_cache
from llm_jax.ops.weights import LowRank, OutputFirst, matmul, quantize

B, T, F = 3, 6, 4
RNG = np.random.default_rng(0)
GATES = RNG.normal(size=(B, T, 4, F)).astype(np.float32)
KERNEL = RNG.normal(size=(F, 4, F)).astype(np.float32)
STATE = LstmState(*(RNG.normal(size=(B, F)).astype(np.float32) for _ in range(2)))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def test_the_cell_on_numbers_by_hand():
    # Gates of 1/2, 3/4, tanh of 1/2, and 1/4: c' = 3/4 · 2 + 1/2 · 1/2 = 1.75.
    gates = jnp.asarray([[0.0], [np.log(3.0)], [np.arctanh(0.5)], [-np.log(3.0)]])
    hidden, cell = lstm_cell(gates, jnp.asarray([2.0]))
    np.testing.assert_allclose(cell, [1.75], rtol=1e-6)
    np.testing.assert_allclose(hidden, [0.25 * 0.941375538], rtol=1e-6)


def by_definition(gates, kernel, state):
    """The scan as a loop over tokens, in float64."""
    hidden, cell = (np.asarray(x, np.float64) for x in state)
    out = []
    for t in range(gates.shape[1]):
        i, f, g, o = np.moveaxis(gates[:, t] + np.einsum("bf,fgh->bgh", hidden, kernel), 1, 0)
        cell = sigmoid(f) * cell + sigmoid(i) * np.tanh(g)
        hidden = sigmoid(o) * np.tanh(cell)
        out.append(hidden)
    return np.stack(out, 1), (hidden, cell)


def test_the_scan_is_its_definition():
    hidden, last = lstm(GATES, KERNEL, STATE)
    wanted, wanted_last = by_definition(GATES, KERNEL, STATE)
    np.testing.assert_allclose(hidden, wanted, atol=1e-6)
    np.testing.assert_allclose(last, wanted_last, atol=1e-6)


def plain(gates, kernel, state):
    """``lstm`` out of cells alone, with the derivatives that JAX makes of them."""
    hidden, cell = state
    out = []
    for t in range(gates.shape[1]):
        of_step = gates[:, t] + jnp.einsum("bf,fgh->bgh", hidden, kernel)
        hidden, cell = lstm_cell(of_step, cell)
        out.append(hidden)
    return jnp.stack(out, 1), LstmState(hidden, cell)


def objective(run):
    def total(*arguments):
        return sum(jnp.sum(jnp.sin(3 * x)) for x in jax.tree.leaves(run(*arguments)))

    return total


def test_the_gradient_is_that_of_the_cells():
    given = (GATES, KERNEL, STATE)
    actual, wanted = (
        jax.jit(jax.grad(objective(run), argnums=(0, 1, 2)))(*given) for run in (lstm, plain)
    )
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def made_by_loops(jaxpr):
    """Shapes of what the loops of a program carry from step to step, or stack."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "scan":
            yield from (v.aval.shape for v in equation.outvars)
        for inner in jax.tree.leaves(
            equation.params, is_leaf=lambda x: isinstance(x, core.Jaxpr | core.ClosedJaxpr)
        ):
            if isinstance(inner, core.ClosedJaxpr):
                yield from made_by_loops(inner.jaxpr)


def test_the_gradient_of_the_kernel_is_one_product_after_the_scan():
    made = jax.make_jaxpr(jax.grad(objective(lstm), argnums=(0, 1)))(GATES, KERNEL)
    shapes = set(made_by_loops(made.jaxpr))
    assert (B, F) in shapes and KERNEL.shape not in shapes


def test_segments_begin_where_they_differ_from_the_token_before():
    segments = jnp.asarray([[1, 1, 2, 2, 3, 0], [0, 1, 0, 1, 2, 1], [0, 0, 0, 0, 0, 0]])
    assert segment_begins(segments).astype(int).tolist() == [
        [1, 0, 1, 0, 1, 0],
        [0, 1, 0, 0, 1, 1],
        [0, 0, 0, 0, 0, 0],
    ]


def test_a_row_begins_anew_where_it_is_told():
    begins = np.zeros((B, T), bool)
    begins[1, 2] = True
    hidden = np.asarray(lstm(GATES, KERNEL, STATE, begins=begins)[0])
    whole = np.asarray(lstm(GATES, KERNEL, STATE)[0])
    anew, _ = lstm(GATES[1:2, 2:], KERNEL)
    np.testing.assert_allclose(hidden[[0, 2]], whole[[0, 2]], atol=1e-6)
    np.testing.assert_allclose(hidden[1, :2], whole[1, :2], atol=1e-6)
    np.testing.assert_allclose(hidden[1:2, 2:], anew, atol=1e-6)


@pytest.mark.parametrize("at", [[0, 1], [2, 4], [4, 5]])
def test_padding_changes_nothing_wherever_it_is(at):
    real = np.ones((B, T), bool)
    real[:, at] = False
    gates = GATES.copy()
    gates[:, at] = 1e3
    hidden, last = lstm(gates, KERNEL, STATE, real=real)
    alone, alone_last = lstm(np.delete(GATES, at, axis=1), KERNEL, STATE)
    np.testing.assert_allclose(np.delete(hidden, at, axis=1), alone, atol=1e-6)
    np.testing.assert_allclose(last, alone_last, atol=1e-6)


def test_a_row_without_tokens_keeps_its_state_to_the_bit():
    _, last = lstm(GATES, KERNEL, STATE, real=np.zeros((B, T), bool))
    np.testing.assert_array_equal(last, STATE)


WEIGHTS = {
    "outputs first": OutputFirst.of(jnp.asarray(KERNEL), 1),
    "int8": quantize(jnp.asarray(KERNEL), (0,)),
    "low rank": LowRank(
        jnp.asarray(KERNEL), jnp.ones((F, 2)), jnp.asarray(RNG.normal(size=(2, 4, F)), jnp.float32)
    ),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_any_weight_multiplies_the_state_as_its_array(name):
    weight = WEIGHTS[name]
    hidden, _ = lstm(GATES, weight, STATE)
    wanted, _ = lstm(GATES, weight.to_array(jnp.float32), STATE)
    np.testing.assert_allclose(hidden, wanted, atol=1e-5)


def test_what_is_added_to_a_frozen_weight_has_its_gradient():
    weight = WEIGHTS["low rank"]

    def of_added(b):
        return objective(lstm)(GATES, LowRank(weight.base, weight.a, b), STATE)

    def of_sum(b):
        added = matmul(weight.a, b)
        return objective(lstm)(GATES, weight.base + added, STATE)

    np.testing.assert_allclose(
        jax.grad(of_added)(weight.b), jax.grad(of_sum)(weight.b), rtol=1e-4, atol=1e-5
    )


def test_bfloat16_keeps_the_cell_in_float32():
    hidden, last = lstm(GATES.astype(jnp.bfloat16), KERNEL)
    assert hidden.dtype == last.hidden.dtype == jnp.bfloat16 and last.cell.dtype == jnp.float32


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((GATES[:, :, :3], KERNEL), r"gates \(3, 6, 3, 4\), which must be \[B, T, 4, F\]"),
        ((GATES, KERNEL[:, :, :3]), r"recurrent weight, which must be \[F, 4, F\]"),
        ((GATES, KERNEL, LstmState(STATE.hidden[:2], STATE.cell)), r"a state \(2, 4\) and"),
    ],
)
def test_shapes_that_disagree_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        lstm(*arguments)


def test_marks_of_another_shape_are_named():
    with pytest.raises(ValueError, match=r"lstm real has the shape \(3, 5\); gates \(3, 6, 4, 4\)"):
        lstm(GATES, KERNEL, real=np.ones((B, T - 1), bool))


def test_the_cache_of_a_layer():
    cache = recurrent_cache(B, F, jnp.bfloat16)
    assert (cache.hidden.dtype, cache.cell.dtype) == (jnp.bfloat16, jnp.float32)
    written = cache.written(LstmState(*map(jnp.asarray, STATE)))
    assert written.hidden.dtype == jnp.bfloat16
    rows = jnp.asarray([2, 2, 0, 1])
    np.testing.assert_array_equal(written.gather(rows).cell, STATE.cell[rows])
    assert jax.tree.leaves(written.axes) == ["batch", "act_mlp"] * 2
    chunk = Chunk(jnp.zeros(B, int), jnp.ones(B, int), 1)
    np.testing.assert_array_equal(written.state(chunk).cell, STATE.cell)
    assert written.state(Chunk(chunk.start, chunk.count, 1, begin=True)) is None
    assert written.truncate(0) is written
    with pytest.raises(ValueError, match="up to 2 tokens are to be taken back"):
        written.truncate(2)
