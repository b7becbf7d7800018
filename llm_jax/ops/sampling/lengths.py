"""Rules of places: stop tokens that wait, tokens that must come first or last, and stop tokens that
become likelier.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from llm_jax.ops.meshes import explicit_spec, place_automatically
from llm_jax.ops.precision import widened
from llm_jax.ops.sampling.arguments import Setting, is_token, per_row, token_ids, whole_per_row


def min_new_tokens(logits: Array, stop_ids: Array, generated: Array, minimum: Setting) -> Array:
    """-inf for stop tokens in rows with fewer than ``minimum`` new tokens.

    Args:
        logits: [B, V].
        stop_ids: int [B, m]; -1 is none.
        generated: int [B], new tokens so far.
        minimum: int, or int [B].

    Returns:
        [B, V] in float32, or in float64 for logits of float64.

    Raises:
        ValueError: the shapes disagree.
    """

    def run(logits: Array, stop_ids: Array, waits: Array) -> Array:
        return jnp.where(is_token(logits, stop_ids) & waits, -jnp.inf, widened(logits))

    waits = _generated(logits, generated) < whole_per_row("minimum", minimum, logits)
    return place_automatically(run, explicit_spec(logits), logits, stop_ids, waits)


def force_token(logits: Array, token: Setting, now: Array) -> Array:
    """0 for one token and -inf for all others, in the rows where it must come.

    Args:
        logits: [B, V].
        token: int, or int [B]; below 0 is none.
        now: bool [B], the rows that are at its place.

    Returns:
        [B, V] in float32, or in float64 for logits of float64.

    Raises:
        ValueError: the shapes disagree.
    """
    forced = whole_per_row("token", token, logits)
    if now.shape != logits.shape[:-1]:
        raise ValueError(f"now has shape {now.shape}; expected {logits.shape[:-1]}")
    alone = jnp.where(token_ids(logits) == forced, 0.0, -jnp.inf)
    scores = widened(logits)
    return jnp.where(now[..., None] & (forced >= 0), alone.astype(scores.dtype), scores)


def length_decay(
    logits: Array, stop_ids: Array, generated: Array, start: Setting, factor: Setting
) -> Array:
    """Adds abs(z) (factor ** n - 1) to the logit z of stop tokens, n new tokens after ``start``.

    Args:
        logits: [B, V].
        stop_ids: int [B, m]; -1 is none.
        generated: int [B], new tokens so far.
        start: int, or int [B]: new tokens before the first for which it applies.
        factor: positive, a number or [B]; 1 is off, and more than 1 favours the end.

    Returns:
        [B, V] in float32, or in float64 for logits of float64. A logit that is not finite stays.

    Raises:
        ValueError: the shapes disagree.
    """

    def run(logits: Array, stop_ids: Array, past: Array, factor: Array) -> Array:
        scores = widened(logits)
        # Half of the largest number, so that a sum stays finite.
        most = jnp.finfo(scores.dtype).max / 2
        power = jnp.minimum(factor.astype(scores.dtype) ** past, most)
        added = jnp.minimum(jnp.abs(scores) * (power - 1), most)
        applies = is_token(logits, stop_ids) & (past > 0) & jnp.isfinite(scores)
        return scores + jnp.where(applies, added, 0.0)

    past = jnp.maximum(_generated(logits, generated) - whole_per_row("start", start, logits), 0)
    setting = per_row("factor", factor, logits)
    return place_automatically(run, explicit_spec(logits), logits, stop_ids, past, setting)


def _generated(logits: Array, generated: Array) -> Array:
    return whole_per_row("generated", generated, logits)
