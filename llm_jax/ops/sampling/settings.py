"""The settings of sampling as arrays with one entry for each row.

Another value is another array, so that no setting compiles a program again. A value that is off
changes nothing.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array


class Filters(NamedTuple):
    """Which tokens may be drawn, by their probabilities; arrays [B].

    Attributes:
        temperature: float32; 0 always takes the most likely token.
        top_k: int32; 0 is off.
        top_p: float32; 1 is off.
        min_p: float32; 0 is off.
        typical_p: float32; 1 is off.
        epsilon: float32; 0 is off.
        eta: float32; 0 is off.
        top_h: float32; 1 is off.
    """

    temperature: Array
    top_k: Array
    top_p: Array
    min_p: Array
    typical_p: Array
    epsilon: Array
    eta: Array
    top_h: Array


class Penalties(NamedTuple):
    """What a token loses or gains for being in the text already; arrays [B].

    Attributes:
        repetition: float32, of tokens in the prompt or the new text; 1 is off.
        encoder_repetition: float32; more than 1 favours the tokens of the source; 1 is off.
        presence: float32, of tokens in the new text; 0 is off.
        frequency: float32, for each time in the new text; 0 is off.
        ngram: int32, length of the n-grams that may not come again; 0 is off.
        encoder_ngram: int32, length of the source's n-grams that may not come; 0 is off.
    """

    repetition: Array
    encoder_repetition: Array
    presence: Array
    frequency: Array
    ngram: Array
    encoder_ngram: Array


class Rules(NamedTuple):
    """Which tokens may come where.

    Attributes:
        bias: float32 [B, V], added to the logits.
        allowed: uint32 [B, ceil(V / 32)], a bit for each token that may come, the lowest first.
        begin_allowed: the same for the first new token.
        sequence_ids: int32 [B, n, w], sequences of tokens, -1 before the first.
        sequence_bias: float32 [B, n], added to a sequence's last token where the others have come.
        forced_first: int32 [B], the first new token; -1 is off.
        forced_last: int32 [B], the token at ``max_new``; -1 is off.
        stop_ids: int32 [B, m], tokens that end the row; -1 is none.
        min_new: int32 [B], new tokens before one of them may come.
        max_new: int32 [B], most new tokens.
        decay_start: int32 [B], new tokens from which stop tokens get more likely.
        decay_factor: float32 [B], by which they do; 1 is off.
    """

    bias: Array
    allowed: Array
    begin_allowed: Array
    sequence_ids: Array
    sequence_bias: Array
    forced_first: Array
    forced_last: Array
    stop_ids: Array
    min_new: Array
    max_new: Array
    decay_start: Array
    decay_factor: Array


class Watermark(NamedTuple):
    """The green-list watermark of each row; arrays [B].

    Attributes:
        bias: float32, added to the logits of green tokens; 0 is off.
        ratio: float32, the share of the vocabulary that is green.
        key: uint32, which lists are drawn.
        width: int32, tokens before a place that choose its list; 1 to 4.
    """

    bias: Array
    ratio: Array
    key: Array
    width: Array


class Settings(NamedTuple):
    """All settings of a batch.

    Attributes:
        filters: by probabilities.
        penalties: by what the text has.
        rules: by token and place.
        watermark: of the text.
        guidance: float32 [B], scale of classifier-free guidance; 1 is off.
        renormalize: bool [B], whether the result is log-probabilities.
        remove_invalid: bool [B], whether NaN and infinities become finite (see ``remove_invalid``).
        seed: uint32 [B, 2], the high and the low half of 64 bits.
    """

    filters: Filters
    penalties: Penalties
    rules: Rules
    watermark: Watermark
    guidance: Array
    renormalize: Array
    remove_invalid: Array
    seed: Array

    def gather(self, rows: Array) -> Settings:
        """The settings whose row b is row ``rows[b]`` of these. rows: int [B']."""
        return jax.tree.map(lambda a: jnp.take(a, rows, axis=0), self)


def off(rows: int, vocab_size: int, *, sequences: tuple[int, int] = (8, 8)) -> Settings:
    """Settings with everything off, at temperature 1.

    Args:
        rows: B.
        vocab_size: V.
        sequences: room for sequences of tokens: their number, and tokens of each.
    """

    def full(value: float, dtype: jnp.dtype = jnp.float32) -> Array:
        return jnp.full((rows,), value, dtype)

    words = -(-vocab_size // 32)
    every = jnp.full((rows, words), 2**32 - 1, jnp.uint32)
    number, width = sequences
    return Settings(
        filters=Filters(
            temperature=full(1.0),
            top_k=full(0, jnp.int32),
            top_p=full(1.0),
            min_p=full(0.0),
            typical_p=full(1.0),
            epsilon=full(0.0),
            eta=full(0.0),
            top_h=full(1.0),
        ),
        penalties=Penalties(
            repetition=full(1.0),
            encoder_repetition=full(1.0),
            presence=full(0.0),
            frequency=full(0.0),
            ngram=full(0, jnp.int32),
            encoder_ngram=full(0, jnp.int32),
        ),
        rules=Rules(
            bias=jnp.zeros((rows, vocab_size)),
            allowed=every,
            begin_allowed=every,
            sequence_ids=jnp.full((rows, number, width), -1, jnp.int32),
            sequence_bias=jnp.zeros((rows, number)),
            forced_first=full(-1, jnp.int32),
            forced_last=full(-1, jnp.int32),
            stop_ids=jnp.full((rows, 8), -1, jnp.int32),
            min_new=full(0, jnp.int32),
            max_new=full(2**31 - 1, jnp.int32),
            decay_start=full(0, jnp.int32),
            decay_factor=full(1.0),
        ),
        watermark=Watermark(
            bias=full(0.0), ratio=full(0.5), key=full(0, jnp.uint32), width=full(1, jnp.int32)
        ),
        guidance=full(1.0),
        renormalize=full(0, jnp.bool_),
        remove_invalid=full(0, jnp.bool_),
        seed=jnp.zeros((rows, 2), jnp.uint32),
    )
