"""Penalties on tokens that a text already has, and the temperature: logits [B, V] in and out.

The definitions are those of CTRL and transformers (repetition) and of OpenAI's and vLLM's servers
(frequency and presence). vLLM's order is repetition, frequency, presence, then temperature and
filters. Each setting is a number, or an array [B] with one for each row.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from llm_jax.ops.precision import accumulator, widened
from llm_jax.ops.sampling.arguments import Setting, per_row
from llm_jax.ops.sampling.draws import greedy


def token_counts(ids: Array, counted: Array, vocab_size: int) -> Array:
    """How often each token is in each row, for the penalties.

    Args:
        ids: int [B, T], below ``vocab_size``.
        counted: bool [B, T]; False for padding, and for a prompt that is not to count.
        vocab_size: V.

    Returns:
        int32 [B, V].

    Raises:
        ValueError: the shapes differ.
    """
    if ids.ndim != 2 or counted.shape != ids.shape:
        raise ValueError(
            f"ids have shape {ids.shape} and counted {counted.shape}; expected [B, T] both"
        )

    def of_row(ids: Array, counted: Array) -> Array:
        return jnp.zeros((vocab_size,), jnp.int32).at[ids].add(counted.astype(jnp.int32))

    return jax.vmap(of_row)(ids, counted)


def repetition_penalty(
    logits: Array, counts: Array, penalty: Setting, *, normalize: bool = False
) -> Array:
    """Multiplies the logit of a token in the text by ``penalty`` where it is negative, and divides
    it otherwise (Keskar et al. 2019, section 4.1, as in transformers).

    How often the token is there makes no difference. The prompt counts in transformers and vLLM.

    Args:
        logits: [B, V].
        counts: int [B, V], of ``token_counts``.
        penalty: positive, a number or [B]; 1 is off, and more than 1 discourages.
        normalize: penalize log-probabilities, so that a constant added to all logits makes no
            difference.

    Returns:
        [B, V] in float32, or in float64 for logits of float64.

    Raises:
        ValueError: the shapes disagree.
    """
    _check(logits, counts)
    scores = widened(logits)
    if normalize:
        scores = jax.nn.log_softmax(scores, axis=-1)
    factor = _per_row("penalty", penalty, logits)
    penalized = jnp.where(scores < 0, scores * factor, scores / factor)
    return jnp.where(counts > 0, penalized, scores)


def encoder_repetition_penalty(logits: Array, counts: Array, penalty: Setting) -> Array:
    """``repetition_penalty`` of 1 / ``penalty``: favours the tokens of a source (as in
    transformers).

    Args:
        logits: [B, V].
        counts: int [B, V], of ``token_counts`` of what an encoder read, or of the prompt.
        penalty: positive, a number or [B]; 1 is off, and more than 1 favours the source's tokens.

    Returns:
        [B, V] in float32, or in float64 for logits of float64.

    Raises:
        ValueError: the shapes disagree.
    """
    return repetition_penalty(logits, counts, 1 / _per_row("penalty", penalty, logits)[:, 0])


def frequency_penalty(logits: Array, counts: Array, penalty: Setting) -> Array:
    """Subtracts ``penalty`` from a token's logit for every time that the text has it (OpenAI).

    Args:
        logits: [B, V].
        counts: int [B, V], of ``token_counts``. OpenAI and vLLM count generated tokens only.
        penalty: a number or [B]; 0 is off.

    Returns:
        [B, V] in float32, or in float64 for logits of float64.

    Raises:
        ValueError: the shapes disagree.
    """
    _check(logits, counts)
    each = _per_row("penalty", penalty, logits)
    return widened(logits) - counts.astype(jnp.float32) * each


def presence_penalty(logits: Array, counts: Array, penalty: Setting) -> Array:
    """Subtracts ``penalty`` once from the logit of every token that the text has (OpenAI).

    Args:
        logits: [B, V].
        counts: int [B, V], of ``token_counts``. OpenAI and vLLM count generated tokens only.
        penalty: a number or [B]; 0 is off.

    Returns:
        [B, V] in float32, or in float64 for logits of float64.

    Raises:
        ValueError: the shapes disagree.
    """
    _check(logits, counts)
    once = _per_row("penalty", penalty, logits)
    return widened(logits) - (counts > 0).astype(jnp.float32) * once


def scale_temperature(logits: Array, temperature: Setting) -> Array:
    """Logits divided by the temperature; at 0 only a row's most likely token is left.

    Args:
        logits: [B, V].
        temperature: a number or [B], at least 0.

    Returns:
        [B, V] in float32, or in float64 for logits of float64.

    Raises:
        ValueError: the temperature has another shape.
    """
    scores = widened(logits)
    divisor = _per_row("temperature", temperature, logits)
    is_greedy = divisor == 0
    best = jnp.arange(logits.shape[-1])[None, :] == greedy(scores)[:, None]
    scores = scores / jnp.where(is_greedy, 1.0, divisor)
    return jnp.where(is_greedy & ~best, -jnp.inf, scores)


def _check(logits: Array, counts: Array) -> None:
    if logits.ndim != 2 or counts.shape != logits.shape:
        raise ValueError(
            f"logits have shape {logits.shape} and counts {counts.shape}; expected [B, V] both"
        )


def _per_row(name: str, setting: Setting, logits: Array) -> Array:
    """A setting as [B, 1] in the dtype that the logits are computed in."""
    if logits.ndim != 2:
        raise ValueError(f"logits have shape {logits.shape}; expected [B, V]")
    return per_row(name, setting, logits).astype(accumulator(logits))
