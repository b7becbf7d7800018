"""Cross-entropy that never holds the logits of a whole batch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array


class LossOutput(NamedTuple):
    """Sums over a batch.

    total:    float32 [], sum over counted tokens of nll + z_loss·log_z²; the one differentiable field
    nll:      float32 [B, T], negative log-likelihood in nats per token, 0 where not counted
    correct:  bool [B, T], the target alone was the most likely token, False where not counted
    """

    total: Array
    nll: Array
    correct: Array


def cross_entropy(logits: Array, targets: Array, mask: Array, z_loss: float = 0.0) -> LossOutput:
    """Cross-entropy with z-loss (PaLM, section 5) in float32. logits: [B, T, V], targets: int [B, T], mask: bool [B, T]."""
    logits = logits.astype(jnp.float32)
    log_z = jax.nn.logsumexp(logits, axis=-1)
    at_target = jnp.take_along_axis(logits, targets[..., None], axis=-1)
    nll = log_z - at_target[..., 0]
    zero = jnp.zeros_like(nll)
    total = jnp.sum(jnp.where(mask, nll + z_loss * jnp.square(log_z), zero))
    # Counting runs at the speed of memory on every backend, argmax on few.
    correct = (jnp.sum(logits >= at_target, axis=-1) == 1) & mask
    return LossOutput(total, jax.lax.stop_gradient(jnp.where(mask, nll, zero)), correct)


def chunked_cross_entropy(
    logits_fn: Callable[[Array], Array],
    hidden: Array,
    targets: Array,
    mask: Array,
    *,
    chunk: int,
    z_loss: float = 0.0,
) -> LossOutput:
    """``cross_entropy(logits_fn(hidden), …)`` with only [B, chunk, V] logits alive at once.

    logits_fn maps [B, chunk, D] to [B, chunk, V]; gradients reach hidden [B, T, D] and whatever logits_fn closes over.
    The gradient is made in the forward pass, chunk by chunk, since the loss is a sum: three matrix products in all,
    none repeated. Raises ValueError when ``chunk`` does not divide T.
    """
    T = hidden.shape[1]
    if chunk < 1 or T % chunk:
        raise ValueError(f"loss chunk {chunk} does not divide the row length {T}")
    fn, weights = jax.closure_convert(logits_fn, hidden[:, :chunk])
    return _chunked(fn, chunk, z_loss, hidden, tuple(weights), targets, mask)


def _chunks(x: Array, chunk: int) -> Array:
    B, T = x.shape[:2]
    return jnp.moveaxis(x.reshape(B, T // chunk, chunk, *x.shape[2:]), 1, 0)


def _joined(x: Array) -> Array:
    return jnp.moveaxis(x, 0, 1).reshape(x.shape[1], -1, *x.shape[3:])


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _chunked(fn: Callable, chunk: int, z_loss: float, hidden: Array, weights: tuple, targets: Array, mask: Array) -> LossOutput:
    def one(total: Array, xs: tuple) -> tuple:
        h, t, m = xs
        out = cross_entropy(fn(h, *weights), t, m, z_loss)
        return total + out.total, (out.nll, out.correct)

    xs = tuple(_chunks(x, chunk) for x in (hidden, targets, mask))
    total, (nll, correct) = jax.lax.scan(one, jnp.zeros((), jnp.float32), xs)
    return LossOutput(total, _joined(nll), _joined(correct))


def _forward(fn: Callable, chunk: int, z_loss: float, hidden: Array, weights: tuple, targets: Array, mask: Array) -> tuple:
    def one(carry: tuple, xs: tuple) -> tuple:
        total, d_weights = carry
        h, t, m = xs

        def loss(h: Array, *w: Array) -> tuple:
            out = cross_entropy(fn(h, *w), t, m, z_loss)
            return out.total, (out.nll, out.correct)

        value, pullback, aux = jax.vjp(loss, h, *weights, has_aux=True)
        d_h, *d_w = pullback(jnp.ones((), jnp.float32))
        return (total + value, [a + b for a, b in zip(d_weights, d_w)]), (d_h, *aux)

    xs = tuple(_chunks(x, chunk) for x in (hidden, targets, mask))
    start = (jnp.zeros((), jnp.float32), [jnp.zeros_like(w) for w in weights])
    (total, d_weights), (d_hidden, nll, correct) = jax.lax.scan(one, start, xs)
    return LossOutput(total, _joined(nll), _joined(correct)), (_joined(d_hidden), tuple(d_weights))


def _backward(fn: Callable, chunk: int, z_loss: float, saved: tuple, cotangent: LossOutput) -> tuple:
    d_hidden, d_weights = saved
    g = cotangent.total
    return (d_hidden * g.astype(d_hidden.dtype), tuple(w * g.astype(w.dtype) for w in d_weights), None, None)


_chunked.defvjp(_forward, _backward)
