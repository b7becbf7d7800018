"""What a loss reads of logits, a chunk of the vocabulary at a time (``ops.losses``)."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.custom_derivatives import SymbolicZero

from llm_jax.ops.meshes import vary_like, vary_together
from llm_jax.ops.nn import soft_cap
from llm_jax.ops.precision import accumulator, widened


class Static(NamedTuple):
    """What is known when the program is compiled; ``mean``: whether the logits' mean is needed."""

    vocab_size: int
    chunk: int
    softcap: float
    mean: bool

    @property
    def pieces(self) -> int:
        return -(-self.vocab_size // self.chunk)


class Head(NamedTuple):
    """The output projection: kernel [V, D] and bias [V] or None."""

    kernel: Any
    bias: Any


class Scores(NamedTuple):
    """What the loss reads of the logits, [B, T] each.

    Attributes:
        log_z: the log normalizer.
        at_target: the target's logit; that of any token where the target is none.
        alone: bool, whether the target's logit is larger than all others.
        mean: of all logits, where label smoothing needs it.
    """

    log_z: Array
    at_target: Array
    alone: Array
    mean: Array


class _Pieces(NamedTuple):
    """The output projection in chunks of the vocabulary.

    Piece p has the tokens p, p + pieces, ..., so that each is spread over devices as the kernel is.

    Attributes:
        kernel: [pieces, chunk, D].
        bias: [pieces, chunk] or None.
        tokens: int [pieces, chunk]; those beyond the vocabulary are padding.
    """

    kernel: Any
    bias: Any
    tokens: Array


def scores_of_targets(static: Static, hidden: Array, head: Head, targets: Array) -> Scores:
    """The scores of hidden [B, T, D] · kernelᵀ + bias for targets [B, T]."""
    hidden, head, targets = vary_together((hidden, head, targets))
    log_z, at_target, mean, others = _scores(static, hidden, head, targets)
    return Scores(log_z, at_target, at_target > jax.lax.stop_gradient(others), mean)


def _pieces(static: Static, head: Head, like: Array) -> _Pieces:
    chunk = static.chunk
    pieces = static.pieces
    padding = pieces * chunk - static.vocab_size
    kernel, bias = head
    if kernel is not None:
        if padding:
            kernel = jnp.pad(kernel, ((0, padding), (0, 0)))
        kernel = jnp.moveaxis(kernel.reshape(chunk, pieces, -1), 1, 0)
    if bias is not None:
        bias = jnp.pad(bias, (0, padding)).reshape(chunk, pieces).T
    tokens = jnp.arange(pieces * chunk).reshape(chunk, pieces).T
    return _Pieces(kernel, bias, vary_like(tokens, like))


def _logits(static: Static, hidden: Array, piece: _Pieces) -> Array:
    """Logits of a chunk, [B, T, chunk]; -inf for padding beyond the vocabulary."""
    kernel = piece.kernel.astype(hidden.dtype)
    logits = widened(jnp.einsum("btd,cd->btc", hidden, kernel))
    if piece.bias is not None:
        logits = logits + piece.bias.astype(logits.dtype)[None, None, :]
    logits = soft_cap(logits, static.softcap)
    if static.vocab_size % static.chunk:
        logits = jnp.where((piece.tokens < static.vocab_size)[None, None, :], logits, -jnp.inf)
    return logits


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _scores(
    static: Static, hidden: Array, head: Head, targets: Array
) -> tuple[Array, Array, Array, Array]:
    """The first pass over the chunks, an online softmax.

    Returns:
        log normalizer, target's logit, mean of the logits, and the largest logit of another token.
    """

    def one(carry: tuple, piece: _Pieces) -> tuple:
        most, total, at_target, others, summed = carry
        logits = _logits(static, hidden, piece)
        here = piece.tokens[None, None, :] == targets[..., None]
        at_target = at_target + jnp.sum(jnp.where(here, logits, 0.0), axis=-1)
        others = jnp.maximum(others, jnp.max(jnp.where(here, -jnp.inf, logits), axis=-1))
        new = jnp.maximum(most, jnp.max(logits, axis=-1))
        total = total * jnp.exp(most - new) + jnp.sum(jnp.exp(logits - new[..., None]), axis=-1)
        if static.mean:
            real = piece.tokens < static.vocab_size
            summed = summed + jnp.sum(jnp.where(real[None, None, :], logits, 0.0), axis=-1)
        return (new, total, at_target, others, summed), None

    dtype = accumulator(hidden)
    zero = vary_like(jnp.zeros(targets.shape, dtype), targets)
    low = zero + jnp.finfo(dtype).min
    pieces = _pieces(static, head, targets)
    (most, total, at_target, others, summed), _ = jax.lax.scan(
        one, (low, zero, zero, low, zero), pieces
    )
    return most + jnp.log(total), at_target, summed / static.vocab_size, others


@partial(_scores.defjvp, symbolic_zeros=True)
def _scores_forward_mode(static: Static, primals: tuple, tangents: tuple) -> tuple:
    """The derivative, a sum over the chunks, whose logits are made again from the normalizer."""
    hidden, head, targets = primals
    out = _scores(static, hidden, head, targets)
    log_z = out[0]
    # The sum of the chunks' gradients is kept in the accumulator's dtype.
    d_hidden = _present(tangents[0], log_z.dtype)
    d_head = Head(*(_present(x, None) for x in tangents[1]))
    zero = vary_like(jnp.zeros(targets.shape, log_z.dtype), targets)

    @partial(jax.checkpoint, prevent_cse=False)
    def added(sums: tuple, hidden: Array, d_hidden: Array | None, pieces: tuple) -> tuple:
        piece, d_piece = pieces
        logits, d_logits = _changes(static, (hidden, d_hidden), piece, d_piece)
        here = piece.tokens[None, None, :] == targets[..., None]
        real = (piece.tokens < static.vocab_size)[None, None, :]
        weights = jnp.exp(logits - log_z[..., None])
        at_log_z, at_target, at_mean = sums
        at_log_z = at_log_z + jnp.sum(weights * d_logits, axis=-1)
        at_target = at_target + jnp.sum(jnp.where(here, d_logits, 0.0), axis=-1)
        if static.mean:
            at_mean = at_mean + jnp.sum(jnp.where(real, d_logits, 0.0), axis=-1)
        return at_log_z, at_target, at_mean

    def one(sums: tuple, pieces: tuple) -> tuple:
        return added(sums, hidden, d_hidden, pieces), None

    pieces = (_pieces(static, head, targets), _pieces(static, d_head, targets))
    sums, _ = jax.lax.scan(one, (zero, zero, zero), pieces)
    return out, (sums[0], sums[1], sums[2] / static.vocab_size, jnp.zeros_like(zero))


def _present(tangent: Any, dtype: Any) -> Array | None:
    """A tangent, in ``dtype`` where one is given, or None if it is zero."""
    if tangent is None or isinstance(tangent, SymbolicZero):
        return None
    return tangent if dtype is None else tangent.astype(dtype)


def _changes(
    static: Static, of_hidden: tuple, piece: _Pieces, d_piece: _Pieces
) -> tuple[Array, Array]:
    """The logits of a chunk, and how they change."""
    hidden, d_hidden = of_hidden
    given = [hidden, piece.kernel, piece.bias]
    changes = [
        None if d_hidden is None else d_hidden.astype(hidden.dtype),
        d_piece.kernel,
        d_piece.bias,
    ]
    moved = [i for i, change in enumerate(changes) if change is not None]

    def logits(*values: Array) -> Array:
        arguments = list(given)
        for i, value in zip(moved, values):
            arguments[i] = value
        return _logits(static, arguments[0], _Pieces(arguments[1], arguments[2], piece.tokens))

    return jax.jvp(logits, [given[i] for i in moved], [changes[i] for i in moved])
