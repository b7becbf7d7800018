"""Rules of single tokens: a bias on logits, a mask of allowed tokens, and repairs of logits."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax import Array

from llm_jax.ops.meshes import explicit_spec, place_automatically
from llm_jax.ops.precision import widened
from llm_jax.ops.sampling.sums import log_softmax

WORD = 32
"""Tokens in one word of a mask."""


def mask_words(vocab_size: int) -> int:
    """Words of a mask of allowed tokens."""
    return -(-vocab_size // WORD)


def pack_mask(allowed: np.ndarray) -> np.ndarray:
    """A mask of allowed tokens as bits, on the host.

    Args:
        allowed: bool [..., V].

    Returns:
        uint32 [..., ceil(V / 32)]; token v is bit v % 32 of word v // 32, counted from the lowest.
        The bits past V are 0.
    """
    allowed = np.asarray(allowed, bool)
    missing = -allowed.shape[-1] % WORD
    padded = np.concatenate([allowed, np.zeros((*allowed.shape[:-1], missing), bool)], axis=-1)
    octets = np.packbits(padded, axis=-1, bitorder="little")
    return octets.view("<u4").astype(np.uint32)


def unpack_mask(words: Array, vocab_size: int) -> Array:
    """A mask of ``pack_mask`` as bool [..., V], on the device.

    Args:
        words: uint32 [..., ceil(V / 32)], or int32 with the same bits.
        vocab_size: V.

    Raises:
        ValueError: the words are of another type or number.
    """
    if words.dtype not in (jnp.uint32, jnp.int32) or words.shape[-1] != mask_words(vocab_size):
        raise ValueError(
            f"the mask of allowed tokens is {words.dtype} {words.shape}; expected uint32 or int32"
            f" [..., {mask_words(vocab_size)}] for {vocab_size} tokens"
        )

    def run(words: Array) -> Array:
        places = jnp.arange(WORD, dtype=jnp.uint32)
        places = jnp.expand_dims(places, range(words.ndim))
        bits = (words.astype(jnp.uint32)[..., None] >> places) & 1
        return bits.reshape(*words.shape[:-1], -1)[..., :vocab_size].astype(bool)

    return place_automatically(run, explicit_spec(words, words.ndim - 1), words)


def allow_tokens(logits: Array, words: Array) -> Array:
    """-inf for all tokens but those of the mask.

    Args:
        logits: [..., V].
        words: uint32 [..., ceil(V / 32)], as ``pack_mask`` returns it.

    Returns:
        [..., V] in float32, or in float64 for logits of float64.

    Raises:
        ValueError: the shapes disagree.
    """
    _check_rows("the mask of allowed tokens", words.shape[:-1], logits.shape[:-1])
    return jnp.where(unpack_mask(words, logits.shape[-1]), widened(logits), -jnp.inf)


def logit_bias(logits: Array, bias: Array) -> Array:
    """The sum of logits and a bias.

    Args:
        logits: [..., V].
        bias: [..., V]; -inf forbids a token.

    Returns:
        [..., V] in float32, or in float64 for logits of float64.

    Raises:
        ValueError: the shapes differ.
    """
    _check_rows("the bias of logits", bias.shape, logits.shape)
    return widened(logits) + bias


def remove_invalid(logits: Array) -> Array:
    """Logits with 0 for NaN, and the largest and the smallest number for the infinities.

    It hides what went wrong in the model, and lets forbidden tokens come where no other token is
    left (as in transformers).

    Args:
        logits: any shape.
    """
    scores = widened(logits)
    limits = jnp.finfo(scores.dtype)
    scores = jnp.where(jnp.isnan(scores), 0.0, scores)
    return jnp.clip(scores, limits.min, limits.max)


def renormalize(logits: Array) -> Array:
    """Log-probabilities [..., V] of logits; -inf for a row in which every logit is."""
    scores = widened(logits)
    return jnp.where(all_banned(scores)[..., None], -jnp.inf, log_softmax(scores))


def all_banned(logits: Array) -> Array:
    """Whether no token of a row is left: every logit is -inf. [..., V] -> bool [...]."""
    return jnp.max(logits, axis=-1) == -jnp.inf


def _check_rows(name: str, shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    if shape != expected:
        raise ValueError(f"{name} has shape {shape}; expected {expected}, as the logits have it")
