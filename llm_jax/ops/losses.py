"""Cross-entropy, also without the logits of a whole batch in memory."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from llm_jax.ops.nn import soft_cap


class LossOutput(NamedTuple):
    """Sums over a batch.

    Attributes:
        total: float32 [], the sum over counted tokens of nll + z_loss·log_z², with label smoothing
            in nll; the only differentiable field.
        nll: float32 [B, T], negative log-likelihood in nats per token, 0 where not counted.
        correct: bool [B, T], whether the target alone was the most likely token; False where not
            counted.
    """

    total: Array
    nll: Array
    correct: Array


def cross_entropy(
    logits: Array, targets: Array, mask: Array, z_loss: float = 0.0, label_smoothing: float = 0.0
) -> LossOutput:
    """Cross-entropy with z-loss (PaLM, section 5), in float32.

    Args:
        logits: [B, T, V].
        targets: int [B, T].
        mask: bool [B, T], the counted tokens.
        z_loss: weight of the squared log normalizer.
        label_smoothing: share of the target's weight that is spread evenly over the vocabulary
            (Szegedy et al. 2016, section 7), in ``total`` alone.
    """
    logits = logits.astype(jnp.float32)
    log_z = jax.nn.logsumexp(logits, axis=-1)
    at_target = jnp.take_along_axis(logits, targets[..., None], axis=-1)
    nll = log_z - at_target[..., 0]
    zero = jnp.zeros_like(nll)
    smooth = nll
    if label_smoothing:
        smooth = nll + label_smoothing * (at_target[..., 0] - jnp.mean(logits, axis=-1))
    total = jnp.sum(jnp.where(mask, smooth + z_loss * jnp.square(log_z), zero))
    # Counting is bound by memory on every backend, argmax only on some.
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
    """``cross_entropy`` of the logits hidden · kernelᵀ + bias, with [B, T, chunk] logits at once.

    Chunks are taken over the vocabulary, not over positions: the gradient of each piece of the
    kernel is then one product, which is summed over devices once. The first pass finds the
    normalizer; the second, only where a gradient is asked for, makes the logits again: four matrix
    products in place of three. Gradients reach hidden, kernel and bias.

    Args:
        hidden: [B, T, D].
        kernel: [V, D], the output projection, or the embedding where they are tied.
        targets: int [B, T].
        mask: bool [B, T], the counted tokens.
        chunk: tokens of the vocabulary at once, from 1 to V.
        softcap: c·tanh(x/c) on the logits; 0 is none.
        z_loss: as in ``cross_entropy``.
        bias: [V] or None.
        label_smoothing: as in ``cross_entropy``.

    Raises:
        ValueError: the chunk is not from 1 to V.
    """
    V = kernel.shape[0]
    if not 1 <= chunk <= V:
        raise ValueError(
            f"loss chunk {chunk} is not between 1 and the {V} tokens of the vocabulary"
        )
    static = _Static(V, chunk, softcap, z_loss, label_smoothing)
    return _chunked(static, hidden, _Head(kernel, bias), targets, mask)


class _Static(NamedTuple):
    vocab_size: int
    chunk: int
    softcap: float
    z_loss: float
    label_smoothing: float

    @property
    def pieces(self) -> int:
        return -(-self.vocab_size // self.chunk)


class _Head(NamedTuple):
    """The output projection: kernel [V, D] and bias [V] or None."""

    kernel: Array
    bias: Array | None


class _Pieces(NamedTuple):
    """The output projection in chunks of the vocabulary.

    Piece p has the tokens p, p + pieces, ..., so that each is spread over devices as the kernel is.

    Attributes:
        kernel: [pieces, chunk, D].
        bias: [pieces, chunk] or None.
        tokens: int [pieces, chunk]; those beyond the vocabulary are padding.
    """

    kernel: Array
    bias: Array | None
    tokens: Array


class _Scores(NamedTuple):
    """What the loss reads of the logits, float32 [B, T] each.

    Attributes:
        log_z: the log normalizer.
        at_target: the target's logit.
        others: the largest other logit.
        mean: of all logits, where label smoothing needs it.
    """

    log_z: Array
    at_target: Array
    others: Array
    mean: Array


def _pieces(static: _Static, head: _Head) -> _Pieces:
    chunk = static.chunk
    pieces = static.pieces
    padding = pieces * chunk - static.vocab_size
    kernel, bias = head
    if padding:
        kernel = jnp.pad(kernel, ((0, padding), (0, 0)))
    if bias is not None:
        bias = jnp.pad(bias, (0, padding)).reshape(chunk, pieces).T
    tokens = jnp.arange(pieces * chunk).reshape(chunk, pieces).T
    return _Pieces(jnp.moveaxis(kernel.reshape(chunk, pieces, -1), 1, 0), bias, tokens)


def _logits(static: _Static, hidden: Array, head: _Head, tokens: Array) -> Array:
    """Logits of a chunk, float32 [B, T, chunk]; -inf for padding beyond the vocabulary."""
    kernel, bias = head
    logits = jnp.einsum("btd,cd->btc", hidden, kernel.astype(hidden.dtype)).astype(jnp.float32)
    if bias is not None:
        logits = logits + bias.astype(jnp.float32)[None, None, :]
    logits = soft_cap(logits, static.softcap)
    if static.vocab_size % static.chunk:
        logits = jnp.where((tokens < static.vocab_size)[None, None, :], logits, -jnp.inf)
    return logits


def _normalize(static: _Static, hidden: Array, pieces: _Pieces, targets: Array) -> _Scores:
    """The first pass over the chunks: an online softmax."""

    def one(carry: tuple, piece: _Pieces) -> tuple:
        most, total, at_target, others, summed = carry
        logits = _logits(static, hidden, _Head(piece.kernel, piece.bias), piece.tokens)
        here = piece.tokens[None, None, :] == targets[..., None]
        at_target = at_target + jnp.sum(jnp.where(here, logits, 0.0), axis=-1)
        others = jnp.maximum(others, jnp.max(jnp.where(here, -jnp.inf, logits), axis=-1))
        new = jnp.maximum(most, jnp.max(logits, axis=-1))
        total = total * jnp.exp(most - new) + jnp.sum(jnp.exp(logits - new[..., None]), axis=-1)
        if static.label_smoothing:
            real = piece.tokens < static.vocab_size
            summed = summed + jnp.sum(jnp.where(real, logits, 0.0), axis=-1)
        return (new, total, at_target, others, summed), None

    low = jnp.full(targets.shape, jnp.finfo(jnp.float32).min, jnp.float32)
    zero = jnp.zeros(targets.shape, jnp.float32)
    (most, total, at_target, others, summed), _ = jax.lax.scan(
        one, (low, zero, zero, low, zero), pieces
    )
    return _Scores(most + jnp.log(total), at_target, others, summed / static.vocab_size)


def _output(static: _Static, scores: _Scores, mask: Array) -> LossOutput:
    nll = jnp.where(mask, scores.log_z - scores.at_target, 0.0)
    total = jnp.sum(nll + jnp.where(mask, static.z_loss * jnp.square(scores.log_z), 0.0))
    if static.label_smoothing:
        smoothing = jnp.sum(jnp.where(mask, scores.at_target - scores.mean, 0.0))
        total = total + static.label_smoothing * smoothing
    return LossOutput(total, nll, (scores.at_target > scores.others) & mask)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _chunked(
    static: _Static, hidden: Array, head: _Head, targets: Array, mask: Array
) -> LossOutput:
    scores = _normalize(static, hidden, _pieces(static, head), targets)
    return _output(static, scores, mask)


def _forward(
    static: _Static, hidden: Array, head: _Head, targets: Array, mask: Array
) -> tuple[LossOutput, tuple]:
    """The loss and its gradients.

    The loss is a sum, so its gradients depend on nothing that comes later: they are made here and
    only scaled in the backward pass.
    """
    pieces = _pieces(static, head)
    scores = _normalize(static, hidden, pieces, targets)
    weight = jnp.where(mask, 1.0 + 2.0 * static.z_loss * scores.log_z, 0.0)[..., None]
    counted = mask[..., None].astype(jnp.float32)

    def one(d_hidden: Array, piece: _Pieces) -> tuple:
        logits, pullback = jax.vjp(
            lambda h, k, b: _logits(static, h, _Head(k, b), piece.tokens),
            hidden,
            piece.kernel,
            piece.bias,
        )
        wanted = piece.tokens[None, None, :] == targets[..., None]
        if static.label_smoothing:
            even = static.label_smoothing / static.vocab_size
            wanted = (1 - static.label_smoothing) * wanted + even
        probabilities = jnp.exp(logits - scores.log_z[..., None])
        d_h, d_k, d_b = pullback(weight * probabilities - counted * wanted)
        return d_hidden + d_h.astype(jnp.float32), (d_k, d_b)

    d_hidden, (d_kernel, d_bias) = jax.lax.scan(one, jnp.zeros(hidden.shape, jnp.float32), pieces)
    V, D = head.kernel.shape
    d_kernel = jnp.moveaxis(d_kernel, 0, 1).reshape(-1, D)[:V]
    d_bias = None if head.bias is None else d_bias.T.reshape(-1)[:V]
    gradients = (d_hidden.astype(hidden.dtype), _Head(d_kernel, d_bias))
    return _output(static, scores, mask), gradients


def _backward(static: _Static, saved: tuple, cotangent: LossOutput) -> tuple:
    g = cotangent.total
    return *jax.tree.map(lambda d: d * g.astype(d.dtype), saved), None, None


_chunked.defvjp(_forward, _backward)
