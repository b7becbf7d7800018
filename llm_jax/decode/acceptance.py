"""Which drafted tokens are accepted: the rules that keep the distribution of the model."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from llm_jax.ops.sampling.draws import categorical, row_keys

# The random numbers of a place: those of its key draw the token that no draft decides, and keys
# made of it draw the drafted token and the number that accepts it.
_DRAFT = 1
_ACCEPT = 2


class Verified(NamedTuple):
    """What a verification gives: G drafted tokens, and one more.

    Attributes:
        tokens: int32 [G + 1, B]; those after ``accepted`` + 1 mean nothing.
        accepted: int32 [B], how many drafted tokens come first among them.
    """

    tokens: Array
    accepted: Array


def draft_keys(seeds: Array, places: Array) -> Array:
    """Keys [B] that drafted tokens are drawn with. seeds: as ``row_keys``; places: int [B]."""
    return jax.vmap(jax.random.fold_in, (0, None))(row_keys(seeds, places), _DRAFT)


def verify_equal(tokens: Array, drafts: Array, counts: Array) -> Verified:
    """Accepts the drafted tokens that the model chooses itself.

    Since all tokens are the model's own choices, the text is the same as without a draft. A
    drafted token x that is no draw is accepted with probability p(x), as in ``verify_draws``.

    Args:
        tokens: int32 [G + 1, B], the model's choice at each place if the drafted tokens before it
            are right.
        drafts: int32 [G, B].
        counts: int32 [B], how many of them each row has.
    """
    return Verified(tokens, _leading((tokens[:-1] == drafts) & _within(drafts, counts)))


def verify_draws(
    target: Array, draft: Array, drafts: Array, counts: Array, *, seeds: Array, places: Array
) -> Verified:
    """Accepts drawn tokens so that the result has the model's distribution (Leviathan et al. 2023).

    A token x, drawn from q, is accepted with probability min(1, p(x) / q(x)). In place of the first
    one that is not, a token is drawn from max(0, p - q), normalised; after the last, from p.

    Args:
        target: float32 [G + 1, B, V], processed logits of the model, p.
        draft: float32 [G, B, V], processed logits of the draft, q.
        drafts: int32 [G, B], drawn from ``draft`` with ``draft_keys``.
        counts: int32 [B], how many of them each row has.
        seeds: as ``row_keys``.
        places: int [G + 1, B], of each token.
    """
    rows = jnp.arange(counts.shape[0])
    p = jax.nn.softmax(target, axis=-1)
    q = jax.nn.softmax(draft, axis=-1)
    p_drafted = jnp.take_along_axis(p[:-1], drafts[..., None], axis=-1)[..., 0]
    q_drafted = jnp.take_along_axis(q, drafts[..., None], axis=-1)[..., 0]
    keys = jax.vmap(row_keys, (None, 0))(seeds, places)
    numbers = jax.vmap(jax.vmap(_accept_number))(keys[:-1])
    # Strictly less: a token of which p is 0 is never accepted.
    fits = numbers * q_drafted < p_drafted
    accepted = _leading(fits & _within(drafts, counts))
    p_last = p[accepted, rows]
    q_last = q[jnp.minimum(accepted, drafts.shape[0] - 1), rows]
    was_drafted = (accepted < counts)[:, None]
    left = jnp.maximum(p_last - jnp.where(was_drafted, q_last, 0), 0)
    # Nothing is left where p and q are equal but for rounding.
    left = jnp.where(jnp.any(left > 0, axis=-1, keepdims=True), left, p_last)
    last = categorical(keys[accepted, rows], jnp.log(left))
    tokens = jnp.concatenate([drafts, drafts[-1:]])
    return Verified(tokens.at[accepted, rows].set(last), accepted)


def _accept_number(key: Array) -> Array:
    """Uniform from 0, included, to 1, excluded."""
    return jax.random.uniform(jax.random.fold_in(key, _ACCEPT))


def _within(drafts: Array, counts: Array) -> Array:
    return jnp.arange(drafts.shape[0])[:, None] < counts[None, :]


def _leading(fits: Array) -> Array:
    """int32 [B], how many of ``fits`` [G, B] hold before the first that does not."""
    return jnp.sum(jnp.cumprod(fits.astype(jnp.int32), axis=0), axis=0, dtype=jnp.int32)
