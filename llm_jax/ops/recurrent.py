"""Long short-term memory: a cell, and a layer that reads a row token by token.

The products with the inputs are of all positions at once; what depends on the token before is a
scan over time. So is its derivative, in which the gradient of the recurrent kernel is one product
over all positions, after the scan.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.custom_derivatives import SymbolicZero

from llm_jax.ops.cpu import project_of_changed
from llm_jax.ops.meshes import vary_together
from llm_jax.ops.precision import accumulator, widened
from llm_jax.ops.weights import Weight, matmul


class LstmState(NamedTuple):
    """What a layer keeps of the tokens that it has read.

    Attributes:
        hidden: [B, F], its output, in the type of activations.
        cell: [B, F], at least float32.
    """

    hidden: Array
    cell: Array


class _Marks(NamedTuple):
    """Where a row begins anew, and which of its places are tokens: bool [T, B, 1], or None."""

    begins: Array | None
    real: Array | None


class _Trace(NamedTuple):
    """What the derivative reads of each step.

    Attributes:
        gates: [T, B, 4, F], before their activation.
        hidden: [T, B, F], that the step began with.
        cell: [T, B, F], that the step began with.
    """

    gates: Array
    hidden: Array
    cell: Array


class _Slopes(NamedTuple):
    """The derivatives of ``lstm_cell``.

    Attributes:
        gates: [..., 4, F], of the new cell by the input gate, the forget gate and the candidate,
            and of the hidden state by the output gate.
        cell: [..., F], of the new cell by the cell before.
        hidden: [..., F], of the hidden state by the new cell.
    """

    gates: Array
    cell: Array
    hidden: Array


def segment_begins(segment_ids: Array) -> Array:
    """Which tokens begin a segment, bool [B, T], whatever padding lies between.

    Args:
        segment_ids: int [B, T], 0 for padding. A token goes on with the last token before it where
            both have one segment.
    """
    at = jnp.arange(segment_ids.shape[1])[None, :]
    real = segment_ids != 0
    last = jax.lax.cummax(jnp.where(real, at, -1), axis=1)
    before = jnp.pad(last, ((0, 0), (1, 0)), constant_values=-1)[:, :-1]
    previous = jnp.take_along_axis(segment_ids, jnp.maximum(before, 0), axis=1)
    return real & ((before < 0) | (previous != segment_ids))


def lstm_cell(gates: Array, cell: Array) -> tuple[Array, Array]:
    """One step of long short-term memory (Hochreiter and Schmidhuber 1997; Gers et al. 2000).

    Args:
        gates: [..., 4, F], products with input and hidden state, and bias, of the input gate i, the
            forget gate f, the candidate g and the output gate o.
        cell: c [..., F].

    Returns:
        The hidden state ``σ(o)·tanh(c')`` in the type of the gates, and the new cell
        ``c' = σ(f)·c + σ(i)·tanh(g)`` in the type of c.
    """
    i, f, g, o = _activated(gates)
    new = f * widened(cell) + i * g
    hidden = o * jnp.tanh(new)
    return hidden.astype(gates.dtype), new.astype(cell.dtype)


def _activated(gates: Array) -> tuple[Array, Array, Array, Array]:
    """The gates [..., 4, F] after their activation, [..., F] each, at least float32."""
    i, f, g, o = (widened(gates[..., gate, :]) for gate in range(4))
    return jax.nn.sigmoid(i), jax.nn.sigmoid(f), jnp.tanh(g), jax.nn.sigmoid(o)


def _slopes(gates: Array, cell: Array) -> _Slopes:
    """The derivatives of a step; arguments as of ``lstm_cell``."""
    i, f, g, o = _activated(gates)
    cell = widened(cell)
    squashed = jnp.tanh(f * cell + i * g)
    of_gates = (
        g * i * (1 - i),
        cell * f * (1 - f),
        i * (1 - g * g),
        squashed * o * (1 - o),
    )
    return _Slopes(jnp.stack(of_gates, axis=-2), f, o * (1 - squashed * squashed))


def lstm(
    gates: Array,
    recurrent: Weight,
    state: LstmState | None = None,
    *,
    begins: Array | None = None,
    real: Array | None = None,
) -> tuple[Array, LstmState]:
    """Long short-term memory over rows.

    Args:
        gates: [B, T, 4, F], of each input the product with the input kernel, and the bias: input,
            forget, candidate and output gate.
        recurrent: a weight [F, 4, F], which multiplies the hidden state before.
        state: that rows begin with; None is 0.
        begins: bool [B, T], tokens before which the state is set to 0; None is none.
        real: bool [B, T], False for padding, which leaves the state as it is; None is all.

    Returns:
        The hidden state after each token [B, T, F], and the state after the last one.

    Raises:
        ValueError: shapes disagree.
    """
    state = _checked(gates, recurrent, state)
    marks = _Marks(*(None if mark is None else mark.T[:, :, None] for mark in (begins, real)))
    for name, mark in marks._asdict().items():
        if mark is not None and mark.shape[:2] != (gates.shape[1], gates.shape[0]):
            raise ValueError(
                f"lstm {name} has the shape {mark.shape[1::-1]}; gates {gates.shape} have rows and"
                f" tokens {gates.shape[:2]}"
            )
    gates, state, recurrent, marks = vary_together((gates, state, recurrent, marks))
    hidden, last = _run(gates.swapaxes(0, 1), state, recurrent, marks)
    return hidden.swapaxes(0, 1), last


def _checked(gates: Array, recurrent: Weight, state: LstmState | None) -> LstmState:
    """The state that rows begin with; raises ValueError if shapes disagree."""
    fits = gates.ndim == 4 and gates.shape[2] == 4
    shapes = jax.eval_shape(matmul, gates[:, 0, 0], recurrent) if fits else None
    if shapes is None or shapes.shape[1:] != gates.shape[2:]:
        raise ValueError(
            f"lstm has gates {gates.shape}, which must be [B, T, 4, F], and a recurrent weight,"
            " which must be [F, 4, F]"
        )
    if state is None:
        zeros = jnp.zeros_like(gates[:, 0, 0])
        return LstmState(zeros, widened(zeros))
    width = (gates.shape[0], gates.shape[3])
    if state.hidden.shape != width or state.cell.shape != width:
        raise ValueError(
            f"lstm has a state {state.hidden.shape} and {state.cell.shape}; gates {gates.shape}"
            f" need [B, F] {width}"
        )
    return LstmState(
        state.hidden.astype(gates.dtype), state.cell.astype(accumulator(gates, state.cell))
    )


@jax.custom_jvp
def _run(
    gates: Array, state: LstmState, recurrent: Weight, marks: _Marks
) -> tuple[Array, LstmState]:
    """``lstm`` with time first: gates [T, B, 4, F] -> hidden [T, B, F], and the last state."""
    hidden, _, last = _scan(gates, state, recurrent, marks, traced=False)
    return hidden, last


def _scan(
    gates: Array, state: LstmState, recurrent: Weight, marks: _Marks, *, traced: bool
) -> tuple[Array, _Trace | None, LstmState]:
    """The scan over time. traced: whether to give back what the derivative reads."""

    def step(before: LstmState, xs: tuple[Array, _Marks]) -> tuple[LstmState, Any]:
        given, mark = xs
        begun = _begun(before, mark)
        of_step = given + matmul(begun.hidden, recurrent)
        after = _passed(before, LstmState(*lstm_cell(of_step, begun.cell)), mark)
        trace = _Trace(of_step, *begun) if traced else None
        return after, (after.hidden, trace)

    last, (hidden, trace) = jax.lax.scan(step, state, (gates, marks))
    return hidden, trace, last


def _begun(state: LstmState, mark: _Marks) -> LstmState:
    """The state that a step begins with: 0 where a row begins anew."""
    if mark.begins is None:
        return state
    return _chosen(mark.begins, jax.tree.map(jnp.zeros_like, state), state)


def _passed(before: LstmState, after: LstmState, mark: _Marks) -> LstmState:
    """The state after a step: that from before it where there is padding."""
    return after if mark.real is None else _chosen(mark.real, after, before)


def _chosen(where: Array, state: LstmState, other: LstmState) -> LstmState:
    """``state`` of the rows [B, 1] that are True, and ``other`` of the rest."""
    return LstmState(
        jnp.where(where, state.hidden, other.hidden), jnp.where(where, state.cell, other.cell)
    )


@partial(_run.defjvp, symbolic_zeros=True)
def _run_forward_mode(primals: tuple, tangents: tuple) -> tuple:
    """The derivative: a scan that is linear in what changes, beside one of the values."""
    gates, state, recurrent, marks = primals
    d_gates, d_state, d_recurrent, _ = tangents
    hidden, trace, last = _scan(gates, state, recurrent, marks, traced=True)
    assert trace is not None
    d_gates = _instantiated(d_gates, gates)
    if not all(isinstance(leaf, SymbolicZero) for leaf in jax.tree.leaves(d_recurrent)):
        changed = jax.tree.map(_instantiated, d_recurrent, recurrent)
        d_gates = d_gates + _product_of_changed(trace.hidden, recurrent, changed)

    def step(d_before: LstmState, xs: tuple[Array, _Slopes, _Marks]) -> tuple[LstmState, Array]:
        d_given, slopes, mark = xs
        d_begun = _begun(d_before, mark)
        d_of_step = d_given + matmul(d_begun.hidden, recurrent)
        d_after = _moved(slopes, d_of_step, d_begun)
        d_passed = _passed(d_before, d_after, mark)
        return d_passed, d_passed.hidden

    first = jax.tree.map(_instantiated, d_state, state)
    slopes = _slopes(trace.gates, trace.cell)
    d_last, d_hidden = jax.lax.scan(step, first, (d_gates, slopes, marks))
    return (hidden, last), (d_hidden, d_last)


def _product_of_changed(hidden: Array, recurrent: Weight, changed: Any) -> Array:
    """How the products of all positions change with the weight: the transpose of this one product
    is the gradient of the weight.
    """
    if isinstance(recurrent, Array):
        kernel = recurrent.astype(hidden.dtype)
        return project_of_changed(hidden, kernel, changed.astype(hidden.dtype), 1)
    return jax.jvp(partial(matmul, hidden), (recurrent,), (changed,))[1]


def _moved(slopes: _Slopes, d_gates: Array, d_begun: LstmState) -> LstmState:
    """How the state after a step changes with its gates and the state before."""
    terms = slopes.gates * d_gates.astype(slopes.gates.dtype)
    d_cell = slopes.cell * d_begun.cell.astype(slopes.cell.dtype) + terms[:, :3].sum(axis=1)
    d_hidden = slopes.hidden * d_cell + terms[:, 3]
    return LstmState(d_hidden.astype(d_begun.hidden.dtype), d_cell.astype(d_begun.cell.dtype))


def _instantiated(tangent: Any, like: Array) -> Array:
    """A tangent as an array; zeros of the type of ``like`` where it is none."""
    return jnp.zeros_like(like) if isinstance(tangent, SymbolicZero) else tangent
