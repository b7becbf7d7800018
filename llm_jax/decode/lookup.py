"""Prompt lookup: what followed the latest tokens of a text when they came before.

Saxena 2023, "Prompt lookup decoding": texts that repeat their prompt (summaries, edits, answers
about a document, code) are drafted without a model.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from llm_jax.ops.sampling.history import History


def look_up(history: History, tokens: int, ngram: int, *, source: bool) -> tuple[Array, Array]:
    """The tokens that followed the longest earlier match of each row's latest tokens.

    Of matches of one length, the one counts after which most of ``tokens`` follow; of these, the
    latest.

    Args:
        history: of each row.
        tokens: G, most tokens to copy.
        ngram: most latest tokens to match; one is enough for a match.
        source: whether the source is searched too. It is worth it where an encoder read it; else
            the history has it already.

    Returns:
        int32 [B, G], and int32 [B]: how many of them were found.
    """
    latest = _latest(history, ngram)
    found = _find(history.ids, history.length, latest, tokens)
    if not source:
        return found[:2]
    other = _find(history.source_ids, history.source_length, latest, tokens)
    better = found[2] >= other[2]
    return jnp.where(better[:, None], found[0], other[0]), jnp.where(better, found[1], other[1])


def _latest(history: History, ngram: int) -> Array:
    """int32 [B, ngram], the latest tokens, the last first; -1 where there is none."""
    at = history.length[:, None] - 1 - jnp.arange(ngram)[None, :]
    ids = jnp.take_along_axis(history.ids, jnp.maximum(at, 0), axis=1)
    return jnp.where(at >= 0, ids, -1)


def _find(text: Array, length: Array, latest: Array, tokens: int) -> tuple[Array, Array, Array]:
    """The tokens after the best match in ``text`` [B, S] of ``latest`` [B, ngram], their number,
    and how good it is; nothing of 0 where there is no match.
    """
    S = text.shape[1]
    # A match ends before each of these places, and what follows it begins there. So the end of the
    # text, which nothing follows, is no match of itself.
    place = jnp.arange(S)[None, :]
    goes_on = place < length[:, None]
    matched = jnp.zeros(text.shape, jnp.int32)
    for back in range(latest.shape[1]):
        before = jnp.pad(text, ((0, 0), (back + 1, 0)), constant_values=-2)[:, :S]
        goes_on = goes_on & (before == latest[:, back : back + 1])
        matched = matched + goes_on
    following = jnp.clip(length[:, None] - place, 0, tokens)
    quality = jnp.where(matched > 0, matched * (tokens + 1) + following, 0)
    best = jnp.max(quality, axis=1)
    start = jnp.max(jnp.where(quality == best[:, None], place, -1), axis=1)
    at = start[:, None] + jnp.arange(tokens)[None, :]
    copied = jnp.take_along_axis(text, jnp.clip(at, 0, S - 1), axis=1)
    count = jnp.where(best > 0, jnp.minimum(length - start, tokens), 0)
    return copied, count, best
