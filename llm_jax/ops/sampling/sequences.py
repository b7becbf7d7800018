"""Rules of sequences of tokens: a bias on the last token of a sequence, and n-grams that may not
come again.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from llm_jax.ops.meshes import explicit_spec, place_automatically, vary_like, vary_together
from llm_jax.ops.precision import widened
from llm_jax.ops.sampling.arguments import Setting, marked, whole_per_row
from llm_jax.ops.sampling.history import History

# No token has this id, and no sequence asks for it.
_NO_TOKEN = -2


def recent(history: History, width: int) -> Array:
    """int32 [B, width]: the last tokens of each row, -2 before its first."""
    places = history.length[:, None] + jnp.expand_dims(jnp.arange(-width, 0), 0)
    last = history.ids.shape[1] - 1
    tokens = jnp.take_along_axis(history.ids, jnp.clip(places, 0, last), axis=1)
    return jnp.where(places >= 0, tokens, _NO_TOKEN)


def sequence_bias(logits: Array, sequences: Array, bias: Array, history: History) -> Array:
    """Adds a bias to the last token of each sequence whose other tokens end the text.

    A sequence of one token is a bias that always applies. A bias of -inf makes bad words.

    Args:
        logits: [B, V].
        sequences: int [B, n, w], each with -1 before its first token; all -1 is none.
        bias: [B, n].
        history: the text; prompts count (as in transformers).

    Returns:
        [B, V] in float32, or in float64 for logits of float64.

    Raises:
        ValueError: the shapes disagree.
    """
    _check(logits, history)
    fits = sequences.ndim == 3 and sequences.shape[0] == logits.shape[0]
    if not fits or bias.shape != sequences.shape[:2]:
        raise ValueError(
            f"sequences have shape {sequences.shape} and their biases {bias.shape}; expected"
            f" [B, n, w] and [B, n] of {logits.shape[0]} rows"
        )

    def run(logits: Array, sequences: Array, bias: Array, history: History) -> Array:
        logits = jnp.asarray(widened(logits))
        before = sequences[..., :-1]
        last = sequences[..., -1]
        ends = recent(history, before.shape[-1])[:, None, :]
        matches = jnp.all((before == -1) | (before == ends), axis=-1) & (last >= 0)
        rows = jnp.expand_dims(jnp.arange(logits.shape[0]), 1)
        # A sequence that does not match is written past the end, which drops it.
        places = jnp.where(matches, last, logits.shape[1])
        return logits.at[rows, places].add(bias.astype(logits.dtype), mode="drop")

    return place_automatically(run, explicit_spec(logits), logits, sequences, bias, history)


def no_repeat_ngram(logits: Array, history: History, n: Setting) -> Array:
    """-inf for tokens that would repeat an n-gram of the text.

    Args:
        logits: [B, V].
        history: the text; prompts count (as in transformers).
        n: int, or int [B] for each row; 0 is off, and 1 forbids every token of the text.

    Returns:
        [B, V] in float32, or in float64 for logits of float64.

    Raises:
        ValueError: n is not an integer, or the shapes disagree.
    """
    return _no_ngram(logits, history, n, of_source=False)


def encoder_no_repeat_ngram(logits: Array, history: History, n: Setting) -> Array:
    """-inf for tokens that would make an n-gram of the source.

    Args:
        logits: [B, V].
        history: the text, and the source: what an encoder read, or the prompt.
        n: as in ``no_repeat_ngram``.

    Returns:
        [B, V] in float32, or in float64 for logits of float64.

    Raises:
        ValueError: as ``no_repeat_ngram``.
    """
    return _no_ngram(logits, history, n, of_source=True)


def _no_ngram(logits: Array, history: History, n: Setting, *, of_source: bool) -> Array:
    _check(logits, history)

    def run(logits: Array, history: History, n: Array) -> Array:
        logits, history, n = vary_together((logits, history, n))
        ids = history.source_ids if of_source else history.ids
        counted = history.is_source if of_source else history.is_token
        ends = _ends_of_ngrams(ids, counted, history, n)
        banned = marked(ids, ends & (n > 0), logits.shape[1])
        return jnp.where(banned, -jnp.inf, widened(logits))

    setting = whole_per_row("n", n, logits)
    return place_automatically(run, explicit_spec(logits), logits, history, setting)


def _ends_of_ngrams(ids: Array, counted: Array, history: History, n: Array) -> Array:
    """bool [B, S]: the places of ``ids`` before which the last n - 1 tokens of the text stand."""
    width = ids.shape[1]
    padded = jnp.concatenate([jnp.full_like(ids, -1), ids], axis=1)
    last = history.ids.shape[1] - 1

    def compare(back: Array, matches: Array) -> Array:
        """The places that still match, if the token ``back`` places before is the text's."""
        place = history.length[:, None] - back
        token = jnp.take_along_axis(history.ids, jnp.clip(place, 0, last), axis=1)
        token = jnp.where(place >= 0, token, _NO_TOKEN)
        before = jax.lax.dynamic_slice_in_dim(padded, width - back, width, axis=1)
        return matches & ((before == token) | (back >= n))

    # An n-gram longer than the text cannot be in it.
    longest = jnp.minimum(jnp.max(n), width + 1)
    begins = vary_like(counted, padded)
    return jax.lax.fori_loop(1, longest, compare, begins)


def _check(logits: Array, history: History) -> None:
    if logits.ndim != 2 or history.ids.ndim != 2 or history.ids.shape[0] != logits.shape[0]:
        raise ValueError(
            f"logits have shape {logits.shape} and the history {history.ids.shape}; expected"
            " [B, V] and [B, S]"
        )
