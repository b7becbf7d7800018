"""Cross-entropy that never holds the logits of a whole batch."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from llm_jax.ops.nn import soft_cap


class LossOutput(NamedTuple):
    """Sums over a batch.

    total: float32 [], sum over counted tokens of nll + z_loss·log_z², of nll as label smoothing has
        it; the one differentiable field
    nll: float32 [B, T], negative log-likelihood in nats per token, 0 where not counted
    correct: bool [B, T], the target alone was the most likely token, False where not counted
    """

    total: Array
    nll: Array
    correct: Array


def cross_entropy(
    logits: Array, targets: Array, mask: Array, z_loss: float = 0.0, label_smoothing: float = 0.0
) -> LossOutput:
    """Cross-entropy with z-loss (PaLM, section 5) in float32. logits: [B, T, V], targets: int [B,
    T], mask: bool [B, T].

    label_smoothing: share of the target's weight that is spread evenly over the vocabulary (Szegedy
    et al. 2016, section 7), in ``total`` alone.
    """
    logits = logits.astype(jnp.float32)
    log_z = jax.nn.logsumexp(logits, axis=-1)
    at_target = jnp.take_along_axis(logits, targets[..., None], axis=-1)
    nll = log_z - at_target[..., 0]
    zero = jnp.zeros_like(nll)
    smooth = (
        nll + label_smoothing * (at_target[..., 0] - jnp.mean(logits, axis=-1))
        if label_smoothing
        else nll
    )
    total = jnp.sum(jnp.where(mask, smooth + z_loss * jnp.square(log_z), zero))
    # Counting runs at the speed of memory on every backend, argmax on few.
    correct = (jnp.sum(logits >= at_target, axis=-1) == 1) & mask
    return LossOutput(total, jax.lax.stop_gradient(jnp.where(mask, nll, zero)), correct)


def chunked_cross_entropy(
    hidden: Array,
    kernel: Array,
    targets: Array,
    mask: Array,
    *,
    chunk: int,
    softcap: float = 0.0,
    z_loss: float = 0.0,
    bias: Array | None = None,
    label_smoothing: float = 0.0,
) -> LossOutput:
    """``cross_entropy`` of the logits hidden · kernelᵀ + bias, of which only [B, T, chunk] are
    alive at once.

    hidden: [B, T, D], kernel: [V, D] (the output projection, or the embedding where they are tied),
    bias: [V] or None,
    softcap: c·tanh(x/c) on the logits, chunk: tokens of the vocabulary, from 1 to V, at once.
    Gradients reach hidden, kernel and bias.
    Chunks over the vocabulary, not over positions: each piece of kernel then has its whole gradient
    in one product, which is summed over devices once. The first pass finds the normaliser; the
    second, only where a gradient is asked for, makes the logits again: four matrix products in
    place of three. Raises ValueError for another chunk.
    """
    V = kernel.shape[0]
    if not 1 <= chunk <= V:
        raise ValueError(
            f"loss chunk {chunk} is not between 1 and the {V} tokens of the vocabulary"
        )
    return _chunked(
        _Static(V, chunk, softcap, z_loss, label_smoothing), hidden, kernel, bias, targets, mask
    )


class _Static(NamedTuple):
    vocab_size: int
    chunk: int
    softcap: float
    z_loss: float
    label_smoothing: float

    @property
    def pieces(self) -> int:
        return -(-self.vocab_size // self.chunk)


class _Seen(NamedTuple):
    """float32 [B, T] each. mean is of all tokens' logits, where label smoothing wants it."""

    log_z: Array
    at_target: Array
    others: Array
    """The largest logit but the target's."""
    mean: Array


def _pieces(
    static: _Static, kernel: Array, bias: Array | None
) -> tuple[Array, Array | None, Array]:
    """[pieces, chunk, D], piece p holding the tokens p, p + pieces, …, so that each is spread over
    devices as kernel is; their biases [pieces, chunk]; and which tokens these are, [pieces, chunk].
    """
    short = static.pieces * static.chunk - static.vocab_size
    kernel = jnp.pad(kernel, ((0, short), (0, 0))) if short else kernel
    tokens = jnp.arange(static.pieces * static.chunk).reshape(static.chunk, static.pieces).T
    if bias is not None:
        bias = jnp.pad(bias, (0, short)).reshape(static.chunk, static.pieces).T
    return jnp.moveaxis(kernel.reshape(static.chunk, static.pieces, -1), 1, 0), bias, tokens


def _logits(
    static: _Static, hidden: Array, kernel: Array, bias: Array | None, tokens: Array
) -> Array:
    """float32 [B, T, chunk]; of the tokens beyond the vocabulary that fill the last chunk, -inf."""
    logits = jnp.einsum("btd,cd->btc", hidden, kernel.astype(hidden.dtype)).astype(jnp.float32)
    logits = soft_cap(
        logits if bias is None else logits + bias.astype(jnp.float32)[None, None, :], static.softcap
    )
    return (
        jnp.where((tokens < static.vocab_size)[None, None, :], logits, -jnp.inf)
        if static.vocab_size % static.chunk
        else logits
    )


def _normalise(
    static: _Static, hidden: Array, pieces: tuple[Array, Array | None, Array], targets: Array
) -> _Seen:
    def one(carry: tuple, xs: tuple) -> tuple:
        most, total, at_target, others, summed = carry
        logits = _logits(static, hidden, *xs)
        here = xs[2][None, None, :] == targets[..., None]
        at_target = at_target + jnp.sum(jnp.where(here, logits, 0.0), axis=-1)
        others = jnp.maximum(others, jnp.max(jnp.where(here, -jnp.inf, logits), axis=-1))
        new = jnp.maximum(most, jnp.max(logits, axis=-1))
        total = total * jnp.exp(most - new) + jnp.sum(jnp.exp(logits - new[..., None]), axis=-1)
        if static.label_smoothing:
            summed = summed + jnp.sum(jnp.where(xs[2] < static.vocab_size, logits, 0.0), axis=-1)
        return (new, total, at_target, others, summed), None

    low = jnp.full(targets.shape, jnp.finfo(jnp.float32).min, jnp.float32)
    zero = jnp.zeros(targets.shape, jnp.float32)
    (most, total, at_target, others, summed), _ = jax.lax.scan(
        one, (low, zero, zero, low, zero), pieces
    )
    return _Seen(most + jnp.log(total), at_target, others, summed / static.vocab_size)


def _output(static: _Static, seen: _Seen, mask: Array) -> LossOutput:
    nll = jnp.where(mask, seen.log_z - seen.at_target, 0.0)
    total = jnp.sum(nll + jnp.where(mask, static.z_loss * jnp.square(seen.log_z), 0.0))
    if static.label_smoothing:
        total = total + static.label_smoothing * jnp.sum(
            jnp.where(mask, seen.at_target - seen.mean, 0.0)
        )
    return LossOutput(total, nll, (seen.at_target > seen.others) & mask)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _chunked(
    static: _Static, hidden: Array, kernel: Array, bias: Array | None, targets: Array, mask: Array
) -> LossOutput:
    return _output(static, _normalise(static, hidden, _pieces(static, kernel, bias), targets), mask)


def _forward(
    static: _Static, hidden: Array, kernel: Array, bias: Array | None, targets: Array, mask: Array
) -> tuple:
    """The loss is a sum, so its gradient needs nothing that comes later: made here, it is only
    scaled in the backward pass.
    """
    pieces = _pieces(static, kernel, bias)
    seen = _normalise(static, hidden, pieces, targets)
    weight = jnp.where(mask, 1.0 + 2.0 * static.z_loss * seen.log_z, 0.0)[..., None]
    counted = mask[..., None].astype(jnp.float32)

    def one(d_hidden: Array, xs: tuple) -> tuple:
        logits, pullback = jax.vjp(lambda h, k, b: _logits(static, h, k, b, xs[2]), hidden, *xs[:2])
        here = xs[2][None, None, :] == targets[..., None]
        wanted = (
            (1 - static.label_smoothing) * here + static.label_smoothing / static.vocab_size
            if static.label_smoothing
            else here
        )
        d_h, *d_piece = pullback(
            weight * jnp.exp(logits - seen.log_z[..., None]) - counted * wanted
        )
        return d_hidden + d_h.astype(jnp.float32), d_piece

    d_hidden, (d_kernel, d_bias) = jax.lax.scan(one, jnp.zeros(hidden.shape, jnp.float32), pieces)
    d_kernel = jnp.moveaxis(d_kernel, 0, 1).reshape(-1, kernel.shape[1])[: static.vocab_size]
    d_bias = None if bias is None else d_bias.T.reshape(-1)[: static.vocab_size]
    return _output(static, seen, mask), (d_hidden.astype(hidden.dtype), d_kernel, d_bias)


def _backward(static: _Static, saved: tuple, cotangent: LossOutput) -> tuple:
    g = cotangent.total
    return *jax.tree.map(lambda d: d * g.astype(d.dtype), saved), None, None


_chunked.defvjp(_forward, _backward)
