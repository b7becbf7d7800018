"""Cross-entropy, also without the logits of a whole batch in memory.

What both losses do with a target that is no token of the vocabulary (-100, V): where it is not
counted, nothing; where it is, the loss and its gradient are NaN, which ``jax_debug_nans`` and
``checkify.float_checks`` make an error. Under ``jax_debug_nans``, targets that are not traced are
checked before anything is computed. ``ignore_index`` names a target that is never counted.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from llm_jax.ops.chunked_logits import Head, Scores, Static, scores_of_targets
from llm_jax.ops.meshes import explicit_spec, place_automatically
from llm_jax.ops.precision import accumulator, widened


class LossOutput(NamedTuple):
    """Sums over a batch, in float32, or in float64 for logits of float64.

    Attributes:
        total: [], the sum over tokens of weight · (nll + z_loss · log_z²), with label smoothing in
            nll. The weighted mean is total / sum of the weights: with a bool mask the sum of the
            weights is the number of counted tokens.
        nll: [B, T], negative log-likelihood in nats per token, not weighted, 0 where not counted.
            Gradients go through it, so that callers may weight it themselves.
        correct: bool [B, T], whether the target alone was the most likely token; False where not
            counted.
    """

    total: Array
    nll: Array
    correct: Array


def z_loss(logits: Array) -> Array:
    """The squared log normalizer of each token (PaLM, section 5): [..., V] -> [...]."""
    return jnp.square(jax.nn.logsumexp(widened(logits), axis=-1))


def smoothed_nll(logits: Array, targets: Array, label_smoothing: float) -> Array:
    """Negative log-likelihood with label smoothing, in nats per token.

    Args:
        logits: [..., V].
        targets: int [...]. One that is no token of the vocabulary has a loss of NaN.
        label_smoothing: share of the target's weight that is spread evenly over the vocabulary
            (Szegedy et al. 2016, section 7).

    Returns:
        [...], in float32, or in float64 for logits of float64.

    Raises:
        ValueError: shapes disagree, or the share is not from 0 to 1.
    """
    _check_targets(logits.shape[:-1], targets, None)
    _check_share(label_smoothing)
    run = _plain_scores
    scores = place_automatically(run, _placed_scores(targets), widened(logits), targets)
    known = _known(targets, logits.shape[-1])
    nll = (scores.log_z - scores.at_target) * jnp.where(known, 1.0, jnp.nan)
    return nll + label_smoothing * (scores.at_target - scores.mean)


def cross_entropy(
    logits: Array,
    targets: Array,
    mask: Array | None = None,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
    *,
    ignore_index: int | None = None,
) -> LossOutput:
    """Cross-entropy with z-loss (PaLM, section 5).

    Args:
        logits: [B, T, V].
        targets: int [B, T].
        mask: bool [B, T], the counted tokens; or numbers [B, T], the weight of each token, of any
            sign, where 0 is not counted. None counts all.
        z_loss: weight of the squared log normalizer.
        label_smoothing: share of the target's weight that is spread evenly over the vocabulary
            (Szegedy et al. 2016, section 7), in ``total`` alone.
        ignore_index: targets of this number are not counted.

    Raises:
        ValueError: shapes disagree; label_smoothing is not from 0 to 1; or, under
            ``jax_debug_nans``, a counted target is no token of the vocabulary.
    """
    if logits.ndim != 3:
        raise ValueError(f"cross_entropy logits have shape {logits.shape}; they must be [B, T, V]")
    mask = _mask(targets, mask, ignore_index)
    V = logits.shape[-1]
    _check(logits.shape[:2], targets, mask, V, label_smoothing)
    logits = widened(logits)
    scores = place_automatically(_plain_scores, _placed_scores(targets), logits, targets)
    return _output(scores, targets, mask, V, z_loss=z_loss, label_smoothing=label_smoothing)


def chunked_cross_entropy(
    hidden: Array,
    kernel: Array,
    targets: Array,
    mask: Array | None = None,
    *,
    chunk: int,
    softcap: float = 0.0,
    z_loss: float = 0.0,
    bias: Array | None = None,
    label_smoothing: float = 0.0,
    ignore_index: int | None = None,
) -> LossOutput:
    """``cross_entropy`` of the logits hidden · kernelᵀ + bias, with [B, T, chunk] logits at once.

    Chunks are taken over the vocabulary, not over positions: the gradient of each piece of the
    kernel is then one product, which is summed over devices once. The first pass finds the
    normalizer; the second, only where a derivative is asked for, makes the logits again: four
    matrix products in place of three. Derivatives of any order reach hidden, kernel and bias.

    Args:
        hidden: [B, T, D].
        kernel: [V, D], the output projection, or the embedding where they are tied.
        targets: int [B, T].
        mask: as in ``cross_entropy``.
        chunk: tokens of the vocabulary at once, from 1 to V.
        softcap: c·tanh(x/c) on the logits; 0 is none.
        z_loss: as in ``cross_entropy``.
        bias: [V] or None.
        label_smoothing: as in ``cross_entropy``.
        ignore_index: as in ``cross_entropy``.

    Raises:
        ValueError: as in ``cross_entropy``, or the chunk is not from 1 to V.
    """
    V = kernel.shape[0]
    if not 1 <= chunk <= V:
        raise ValueError(
            f"loss chunk {chunk} is not between 1 and the {V} tokens of the vocabulary"
        )
    fits = hidden.ndim == 3 and kernel.ndim == 2 and hidden.shape[-1] == kernel.shape[1]
    if not fits or (bias is not None and bias.shape != (V,)):
        raise ValueError(
            f"chunked_cross_entropy shapes disagree: hidden {hidden.shape}, kernel {kernel.shape},"
            f" bias {None if bias is None else bias.shape}; they must be [B, T, D], [V, D] and [V]"
        )
    mask = _mask(targets, mask, ignore_index)
    _check(hidden.shape[:2], targets, mask, V, label_smoothing)
    static = Static(V, chunk, softcap, bool(label_smoothing))

    def run(hidden: Array, head: Head, targets: Array) -> Scores:
        return scores_of_targets(static, hidden, head, targets)

    placed = _placed_scores(targets)
    scores = place_automatically(run, placed, hidden, Head(kernel, bias), targets)
    return _output(scores, targets, mask, V, z_loss=z_loss, label_smoothing=label_smoothing)


def _placed_scores(targets: Array) -> Scores:
    spec: Any = explicit_spec(targets)
    return Scores(spec, spec, spec, spec)


def _plain_scores(logits: Array, targets: Array) -> Scores:
    """What the loss reads of whole logits [..., V]."""
    at = jnp.clip(targets, 0, logits.shape[-1] - 1)[..., None]
    at_target = jnp.take_along_axis(logits, at, axis=-1)
    # Counting is bound by memory on every backend, argmax only on some.
    alone = jnp.sum(logits >= at_target, axis=-1) == 1
    log_z = jax.nn.logsumexp(logits, axis=-1)
    return Scores(log_z, at_target[..., 0], alone, jnp.mean(logits, axis=-1))


def _mask(targets: Array, mask: Array | None, ignore_index: int | None) -> Array:
    """The counted tokens, or the weight of each token."""
    if mask is None:
        mask = jnp.ones(targets.shape, bool)
    if ignore_index is None:
        return mask
    counted = targets != ignore_index
    if mask.dtype == bool:
        return mask & counted
    return jnp.where(counted, mask, jnp.zeros_like(mask))


def _check(
    shape: tuple[int, ...], targets: Array, mask: Array, V: int, label_smoothing: float
) -> None:
    """Raises ValueError for arguments that no loss can have."""
    _check_targets(shape, targets, mask)
    _check_share(label_smoothing)
    traced = any(isinstance(x, jax.core.Tracer) for x in (targets, mask))
    if traced or not jax.config.jax_debug_nans:  # type: ignore[attr-defined]
        return
    unknown = jnp.asarray((mask != 0) & ~_known(targets, V))
    if bool(jnp.any(unknown)):
        place = tuple(int(i) for i in jnp.argwhere(unknown, size=1)[0])
        raise ValueError(
            f"target {int(targets[place])} at {place} is counted, and is none of the {V} tokens of"
            " the vocabulary; leave it out of the mask, or name it as ignore_index"
        )


def _check_targets(shape: tuple[int, ...], targets: Array, mask: Array | None) -> None:
    if targets.shape != shape or (mask is not None and mask.shape != shape):
        raise ValueError(
            f"loss targets {targets.shape} and mask {None if mask is None else mask.shape} must"
            f" have the shape of the tokens, {shape}"
        )
    if not jnp.issubdtype(targets.dtype, jnp.integer):
        raise ValueError(f"loss targets are {targets.dtype}; they must be token ids, integers")


def _check_share(label_smoothing: float) -> None:
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing is {label_smoothing}; it must be from 0 to 1")


def _known(targets: Array, V: int) -> Array:
    """Whether each target is a token of the vocabulary."""
    return (targets >= 0) & (targets < V)


def _output(
    scores: Scores, targets: Array, mask: Array, V: int, *, z_loss: float, label_smoothing: float
) -> LossOutput:
    counted = mask if mask.dtype == bool else mask != 0
    zero = jnp.zeros_like(scores.log_z)
    # A product, so that the gradient is NaN too.
    known = jnp.where(_known(targets, V) | ~counted, 1.0, jnp.nan).astype(zero.dtype)
    nll = jnp.where(counted, scores.log_z - scores.at_target, zero) * known
    each = nll
    if z_loss:
        each = each + jnp.where(counted, z_loss * jnp.square(scores.log_z), zero)
    if label_smoothing:
        smoothing = jnp.where(counted, scores.at_target - scores.mean, zero)
        each = each + label_smoothing * smoothing
    if mask.dtype != bool:
        each = each * mask.astype(accumulator(zero, mask))
    return LossOutput(jnp.sum(each), nll, scores.alone & counted)
