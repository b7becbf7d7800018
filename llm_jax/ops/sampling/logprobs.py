"""Log-probabilities of the tokens that were chosen, and of the most likely ones.

Of a model's logits they are ``raw``; of what ``process`` returns, ``processed``.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array

from llm_jax.ops.meshes import explicit_spec, place_automatically
from llm_jax.ops.sampling.arguments import token_ids
from llm_jax.ops.sampling.thresholds import largest
from llm_jax.ops.sampling.tokens import renormalize


class Logprobs(NamedTuple):
    """Log-probabilities at each place.

    Attributes:
        chosen: float32 [...], of the token that was chosen; float64 for logits of float64.
        rank: int32 [...], its place among all tokens from 1 on, the lowest id first among equals.
        top_ids: int32 [..., n], the most likely tokens, the most likely first.
        top: as ``chosen``, [..., n].
    """

    chosen: Array
    rank: Array
    top_ids: Array
    top: Array


def token_logprobs(logits: Array, tokens: Array, top: int = 0) -> Logprobs:
    """The log-probabilities of tokens, and of the ``top`` most likely ones at their places.

    The same token has the same number in ``chosen`` and in ``top``, to the bit.

    Args:
        logits: [..., V]; -inf is a token that cannot come.
        tokens: int [...], the chosen ones.
        top: n, static.

    Raises:
        ValueError: the shapes disagree, or n is not from 0 to V.
    """
    if tokens.shape != logits.shape[:-1] or not 0 <= top <= logits.shape[-1]:
        raise ValueError(
            f"token_logprobs got logits {logits.shape}, tokens {tokens.shape} and top {top};"
            " expected [..., V], [...] and a number from 0 to V"
        )

    def run(logits: Array, tokens: Array) -> Logprobs:
        scores = renormalize(logits)
        chosen = jnp.take_along_axis(scores, tokens[..., None], axis=-1)
        before = (scores == chosen) & (token_ids(scores) < tokens[..., None])
        above = jnp.sum((scores > chosen) | before, axis=-1, dtype=jnp.int32)
        best, ids = largest(scores, max(top, 1))
        return Logprobs(chosen[..., 0], above + 1, ids[..., :top], best[..., :top])

    rows: Any = explicit_spec(logits, logits.ndim - 1)
    return place_automatically(run, Logprobs(rows, rows, rows, rows), logits, tokens)
