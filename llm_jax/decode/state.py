"""What the loop that writes tokens works on: its state, its prompts, and its static choices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array

from llm_jax.ops.sampling.history import History
from llm_jax.ops.sampling.logprobs import Logprobs
from llm_jax.ops.sampling.stops import START, StopTable, TokenBytes, advance_stops

RUNNING, STOP_ID, STOP_TEXT, LENGTH, NOT_FINITE, BANNED, DRAFT_NOT_FINITE = range(7)
"""Why a row has ended: a token or a text that ends it, its length, or an error: logits that are not
finite, no token that may come, or logits of a draft that are not finite."""

_NOT_BEGUN = -1

Processor = Callable[[Array, History], Array]
"""A processor of the user: logits float32 [B, V] and the history to logits."""


class Choosing(NamedTuple):
    """What is static in the choice of tokens.

    Attributes:
        order: of the processors, a key of ``ops.sampling.ORDERS``.
        own: a processor of the user, after all others but temperature and filters.
        top: how many of the most likely tokens are given with their log-probabilities; -1 gives
            no log-probabilities.
        processed: log-probabilities after processing, in place of the model's own.
        guided: the second half of the cache's rows are the first half's unconditional rows.
    """

    order: str = "hf"
    own: Processor | None = None
    top: int = -1
    processed: bool = False
    guided: bool = False


class TextStart(NamedTuple):
    """Where tokens are written differently at the start of a text.

    Attributes:
        begins: bool [B], rows whose new tokens begin a text.
        begun: bool [V], tokens after which a text has begun.
    """

    begins: Array
    begun: Array


class Stops(NamedTuple):
    """Texts that end a row.

    Attributes:
        table: the automaton of each row.
        token_bytes: the bytes of each token; with ``start`` of 2V, also of each as the first of a
            text.
        start: where texts begin; None where tokens are the same there.
    """

    table: StopTable
    token_bytes: TokenBytes
    start: TextStart | None = None

    def advance(self, state: Array, token: Array, is_first: Array) -> tuple[Array, Array]:
        """``advance_stops`` with one more token of each row.

        Args:
            state: int32 [B]; ``_NOT_BEGUN`` where the text of the row has not begun.
            token: int32 [B].
            is_first: bool [B], whether it is the first new one.
        """
        if self.start is None:
            return advance_stops(state, token, self.table, self.token_bytes)
        begins = jnp.where(is_first, self.start.begins, state == _NOT_BEGUN)
        at_start = begins & (token >= 0)
        known = jnp.where(at_start, token + self.start.begun.shape[0], token)
        state = jnp.where(begins, START, state)
        state, matched = advance_stops(state, known, self.table, self.token_bytes)
        begun = jnp.take(self.start.begun, jnp.maximum(token, 0))
        return jnp.where(begins & ~begun, _NOT_BEGUN, state), matched


class Candidates(NamedTuple):
    """What one token of each row is chosen from.

    Attributes:
        logits: [B, V], the model's own.
        processed: [B, V], of the distribution that the token is drawn from.
        finite: bool [B], whether all of the model's own are.
    """

    logits: Array
    processed: Array
    finite: Array


class State(NamedTuple):
    """What the loop carries.

    Attributes:
        token: int32 [B], the last chosen token, which the model has not read.
        cache: of all tokens before it.
        history: prompts and new tokens; a stop token is not among them.
        reason: int32 [B], why a row has ended; ``RUNNING`` where it has not.
        stop_state: int32 [B], how much of a stop text each row has written, as of
            ``Stops.advance``.
        scores: of the new tokens, N places a row; None where none are asked for.
        logits: [B, V], of the token that ``choose`` chooses next; with guidance [2B, V]; None
            where another driver keeps them.
        draft: what ``speculative`` carries beside; None without a draft.
    """

    token: Array
    cache: Any
    history: History
    reason: Array
    stop_state: Array
    scores: Logprobs | None
    logits: Array | None = None
    draft: Any = None

    @property
    def unfinished(self) -> Array:
        """Whether some row goes on, and none has failed."""
        return jnp.any(self.reason == RUNNING) & ~jnp.any(self.reason >= NOT_FINITE)


class Prompts(NamedTuple):
    """The prompts of a batch.

    Attributes:
        tokens: int [P, T], padded on the right.
        lengths: int [P], at least 1.
        negative: int [P, T'], what guidance moves away from; None without guidance.
        negative_lengths: int [P].
    """

    tokens: Array
    lengths: Array
    negative: Array | None = None
    negative_lengths: Array | None = None


class Room(NamedTuple):
    """Static sizes.

    Attributes:
        length: tokens of a row that the cache has room for.
        samples: rows for each prompt, which share the reading of it.
        chunk: tokens of a prompt that are read at once, at multiples of it from the row's first
            token on; 0 reads a prompt at once.
        rollback: tokens of a row that the cache may take back.
    """

    length: int
    samples: int = 1
    chunk: int = 0
    rollback: int = 0
