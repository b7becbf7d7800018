"""One step of beam search as pure functions: which continuations go on, which texts are finished.

The rules are those of transformers' beam search. A score of -inf marks a place without a text.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from llm_jax.config.search import EARLY_STOPPING

_FULL = EARLY_STOPPING.index("full")
_NEVER = EARLY_STOPPING.index("never")


class Rules(NamedTuple):
    """What the search of each prompt follows; arrays with a leading axis B.

    Attributes:
        stop_ids: int32 [B, m], tokens that finish a text; -1 is none.
        max_new: int32 [B], new tokens after which a text is finished.
        length_penalty: float32 [B].
        early_stopping: int32 [B], index in ``config.search.EARLY_STOPPING``.
    """

    stop_ids: Array
    max_new: Array
    length_penalty: Array
    early_stopping: Array

    def is_stop(self, tokens: Array) -> Array:
        """bool [B, n], which of ``tokens`` [B, n] finish a text."""
        return jnp.any(tokens[..., None] == self.stop_ids[:, None, :], axis=-1)


class Candidates(NamedTuple):
    """Continuations of the texts of each prompt; arrays [B, C].

    Attributes:
        score: float32, the sum of log-probabilities with the token.
        parent: int32, the text that it continues, 0 to k - 1.
        token: int32.
    """

    score: Array
    parent: Array
    token: Array

    def take(self, at: Array) -> Candidates:
        """The candidates at the places ``at`` [B, n]."""
        return Candidates(*(jnp.take_along_axis(a, at, axis=1) for a in self))

    def best(self, count: int, allowed: Array) -> Candidates:
        """The ``count`` best of the ``allowed`` [B, C] ones, with -inf in the places of others."""
        score, at = jax.lax.top_k(jnp.where(allowed, self.score, -jnp.inf), count)
        return self.take(at)._replace(score=score)


class Running(NamedTuple):
    """Unfinished texts.

    Attributes:
        tokens: int32 [B, k, N], new tokens.
        score: float32 [B, k], sums of log-probabilities.
    """

    tokens: Array
    score: Array

    def continued(self, chosen: Candidates, new: Array) -> Array:
        """The new tokens [B, n, N] of candidates [B, n], of which ``new`` [] are of the parent."""
        tokens = jnp.take_along_axis(self.tokens, chosen.parent[..., None], axis=1)
        return jax.lax.dynamic_update_slice(tokens, chosen.token[..., None], (0, 0, new))


class Finished(NamedTuple):
    """The best finished texts, the best first.

    Attributes:
        tokens: int32 [B, k, N], new tokens.
        length: int32 [B, k], how many, the stop token included.
        stopped: bool [B, k], whether the last is a stop token.
        score: float32 [B, k], with the length penalty.
    """

    tokens: Array
    length: Array
    stopped: Array
    score: Array

    def best(self, count: int) -> Finished:
        """The ``count`` best of each prompt."""
        score, at = jax.lax.top_k(self.score, count)
        tokens = jnp.take_along_axis(self.tokens, at[..., None], axis=1)
        length = jnp.take_along_axis(self.length, at, axis=1)
        stopped = jnp.take_along_axis(self.stopped, at, axis=1)
        return Finished(tokens, length, stopped, score)

    def joined(self, other: Finished) -> Finished:
        """These and those of ``other``."""
        return Finished(*(jnp.concatenate(pair, axis=1) for pair in zip(self, other)))


class Group(NamedTuple):
    """The search of each prompt with k beams.

    Attributes:
        running: the unfinished texts.
        finished: the best finished ones.
        open: bool [B], whether the search goes on.
    """

    running: Running
    finished: Finished
    open: Array


def empty_group(rows: int, beams: int, most: int) -> Group:
    """The search before any token: one text without tokens.

    Args:
        rows: B.
        beams: k.
        most: N, most new tokens.
    """
    tokens = jnp.zeros((rows, beams, most), jnp.int32)
    none = jnp.full((rows, beams), -jnp.inf)
    count = jnp.zeros((rows, beams), jnp.int32)
    finished = Finished(tokens, count, count.astype(bool), none)
    return Group(Running(tokens, none.at[:, 0].set(0.0)), finished, jnp.ones((rows,), bool))


def likeliest(total: Array, count: int) -> Candidates:
    """The ``count`` best continuations of each prompt, the best first.

    Args:
        total: float32 [B, k, V], scores of the texts with each token.
        count: static.
    """
    B, beams, V = total.shape
    score, at = jax.lax.top_k(total.reshape(B, beams * V), count)
    return Candidates(score, at // V, at % V)


def drawn(total: Array, count: int, wanted: Array, keys: Array) -> Candidates:
    """Continuations drawn without replacement with the probabilities softmax(total), best first.

    The largest sums of score and Gumbel noise are such draws, in their order (Kool et al. 2019).

    Args:
        total: float32 [B, k, V], scores of the texts with each token.
        count: static, at least the largest of ``wanted``.
        wanted: int32 [B], how many are drawn for each prompt.
        keys: [B], random keys.
    """
    B, beams, V = total.shape
    flat = total.reshape(B, beams * V)
    noise = jax.vmap(lambda key: jax.random.gumbel(key, (beams * V,)))(keys)
    noisy, at = jax.lax.top_k(flat + noise, count)
    is_drawn = (jnp.arange(count)[None, :] < wanted[:, None]) & (noisy > -jnp.inf)
    all_drawn = Candidates(jnp.take_along_axis(flat, at, axis=1), at // V, at % V)
    return all_drawn.best(count, is_drawn)


def select(group: Group, found: Candidates, new: Array, rules: Rules) -> tuple[Group, Candidates]:
    """Ends and continues texts with candidates.

    A candidate that ends a text counts if it is one of the k best. Of the others k go on.

    Args:
        group: the search.
        found: [B, C] candidates, the best first; enough that k of them do not stop where so many
            exist.
        new: int32 [], new tokens before this step.
        rules: what the search follows.

    Returns:
        The search after the step, and the k best candidates that do not stop.
    """
    beams = group.running.score.shape[1]
    stops = rules.is_stop(found.token)
    last = (new + 1 >= rules.max_new)[:, None]
    among_best = jnp.arange(found.score.shape[1])[None, :] < beams
    ended = found.best(beams, (stops | last) & among_best)
    chosen = found.best(beams, ~stops)
    return advanced(group, ended, chosen, new, rules), chosen


def advanced(
    group: Group, ended: Candidates, chosen: Candidates, new: Array, rules: Rules
) -> Group:
    """The search after a step.

    Args:
        group: the search before it.
        ended: [B, n], candidates that are finished texts.
        chosen: [B, k], candidates that go on, unless this step is the last.
        new: int32 [], new tokens before this step.
        rules: what the search follows.
    """
    length = new + 1
    score = normalized(ended.score, length, rules.length_penalty)
    texts = Finished(
        tokens=group.running.continued(ended, new),
        length=jnp.full(score.shape, length, jnp.int32),
        stopped=rules.is_stop(ended.token),
        score=jnp.where(group.open[:, None], score, -jnp.inf),
    )
    finished = group.finished.joined(texts).best(group.finished.score.shape[1])
    onward = jnp.where((length >= rules.max_new)[:, None], -jnp.inf, chosen.score)
    running = Running(group.running.continued(chosen, new), onward)
    is_open = group.open & _goes_on(finished, running, length, rules)
    return Group(running, finished, is_open)


def completed(group: Group, ends: Array, counts: Array, new: Array, rules: Rules) -> Group:
    """The search after running texts have ended without a stop token.

    Args:
        group: the search.
        ends: bool [B, k], running texts that do not go on.
        counts: bool [B, k], those of them that are finished texts.
        new: int32 [], new tokens of each.
        rules: what the search follows.
    """
    score = group.running.score
    real = jnp.where(counts & group.open[:, None], score, -jnp.inf)
    texts = Finished(
        tokens=group.running.tokens,
        length=jnp.full(score.shape, new, jnp.int32),
        stopped=jnp.zeros(score.shape, bool),
        score=normalized(real, new, rules.length_penalty),
    )
    finished = group.finished.joined(texts).best(score.shape[1])
    running = group.running._replace(score=jnp.where(ends, -jnp.inf, score))
    is_open = group.open & _goes_on(finished, running, new, rules)
    return Group(running, finished, is_open)


def normalized(score: Array, length: Array, length_penalty: Array) -> Array:
    """``score`` [B, n] divided by ``length`` ([] or [B]) to the power of the penalty [B]."""
    divisor = jnp.asarray(length, jnp.float32) ** length_penalty
    return score / divisor[:, None]


def _goes_on(finished: Finished, running: Running, length: Array, rules: Rules) -> Array:
    """bool [B], whether a running text may still become better than a finished one."""
    is_full = jnp.all(finished.score > -jnp.inf, axis=1)
    closed = is_full & (rules.early_stopping == _FULL)
    to_the_end = (rules.early_stopping == _NEVER) & (rules.length_penalty > 0)
    scored_at = jnp.where(to_the_end, rules.max_new, length)
    best = normalized(
        jnp.max(running.score, axis=1, keepdims=True), scored_at, rules.length_penalty
    )
    may_improve = best[:, 0] > jnp.min(finished.score, axis=1)
    return may_improve & ~closed
