"""Beam search for texts that contain phrases: dynamic beam allocation (Post and Vilar 2018), as
transformers had it.

Texts with the same number of tokens of phrases form a bank. At each step the beams go to the banks
in turn, the fullest bank first, and within a bank to the best text. So the fullest bank has always
a text, and each step may add a token to it: unless tokens are banned, a text has all phrases after
as many steps as the phrases have tokens. A text stops only with all of its phrases.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from llm_jax.decode.beams.selection import Candidates, Group, Rules, Running, advanced, likeliest

# No token, in the place of tokens before the first new one. Padding of phrases is -1.
_BEFORE = -2


class Phrases(NamedTuple):
    """Required phrases of each prompt.

    Attributes:
        ids: int32 [B, P, A, W], the tokens of A alternatives of each phrase, -1 after the last. An
            alternative without tokens is unused, and so is a phrase of such alternatives.
    """

    ids: Array

    @property
    def lengths(self) -> Array:
        """int32 [B, P, A], tokens of each alternative."""
        return jnp.sum(self.ids >= 0, axis=-1)

    @property
    def longest(self) -> Array:
        """int32 [B, P], tokens of the longest alternative."""
        return jnp.max(self.lengths, axis=-1)

    @property
    def width(self) -> int:
        """W."""
        return self.ids.shape[-1]

    def progress(self, windows: Array) -> Array:
        """Tokens of each alternative that texts end with.

        Args:
            windows: int32 [B, n, W], the last new tokens of n texts.

        Returns:
            int32 [B, n, P, A], the most first tokens of an alternative that are a text's last.
        """
        ids = self.ids[:, None]
        out = jnp.zeros((*windows.shape[:2], *self.ids.shape[1:3]), jnp.int32)
        for size in range(1, self.width + 1):
            ending = windows[:, :, None, None, self.width - size :]
            same = jnp.all(ids[..., :size] == ending, axis=-1)
            out = jnp.where(same, size, out)
        return out

    def completed(self, progress: Array) -> Array:
        """bool [B, n, P], phrases that are complete at this ``progress`` [B, n, P, A]."""
        lengths = self.lengths[:, None]
        return jnp.any((progress == lengths) & (lengths > 0), axis=-1)

    def all_met(self, met: Array) -> Array:
        """bool [B, n], texts that have all phrases; ``met`` [B, n, P] are those that they have."""
        return jnp.all(met | (self.longest[:, None] == 0), axis=-1)

    def bank(self, met: Array, progress: Array) -> Array:
        """int32 [B, n], tokens of phrases that texts have.

        Those of each phrase that it has, and those of the one that it is furthest in. Only one
        counts, so that the next token of that one always leads to a fuller bank.
        """
        longest = self.longest[:, None]
        left = self.lengths[:, None] - progress
        begun = jnp.where((progress > 0) & ~met[..., None], longest[..., None] - left, 0)
        return jnp.sum(jnp.where(met, longest, 0), axis=-1) + jnp.max(begun, axis=(-1, -2))


def select_with_phrases(
    group: Group, met: Array, total: Array, new: Array, rules: Rules, phrases: Phrases, count: int
) -> tuple[Group, Array, Candidates]:
    """Ends and continues texts; ``selection.select`` with phrases.

    A stop token counts if it is one of the k best continuations of texts that have all phrases.

    Args:
        group: the search.
        met: bool [B, k, P], phrases that each running text has.
        total: float32 [B, k, V], scores of the texts with each token.
        new: int32 [], new tokens before this step.
        rules: what the search follows.
        phrases: the phrases.
        count: static, candidates of which k end no text where so many exist.

    Returns:
        The search after the step, the phrases that its running texts have, and the candidates that
        go on.
    """
    beams = total.shape[1]
    complete = phrases.all_met(met)
    stops = _vocabulary_mask(rules.stop_ids, total.shape[2])[:, None, :]
    total = jnp.where(stops & ~complete[..., None], -jnp.inf, total)
    best = likeliest(total, count)
    of_complete = jnp.take_along_axis(complete, best.parent, axis=1)
    among_best = jnp.cumsum(of_complete, axis=1) <= beams
    is_stop = rules.is_stop(best.token)
    stopped = best.best(beams, is_stop & of_complete & among_best)

    windows = _windows(group.running, new, phrases.width)
    going_on = [
        best.best(beams, ~is_stop),
        _advancing(total, met, windows, phrases),
        _best_of_each(jnp.where(stops, -jnp.inf, total)),
    ]
    joined = Candidates(*(jnp.concatenate(parts, axis=1) for parts in zip(*going_on)))
    joined = _without_doubles(joined, total.shape[2])
    longer = jnp.take_along_axis(windows, joined.parent[..., None], axis=1)
    longer = jnp.concatenate([longer[..., 1:], joined.token[..., None]], axis=-1)
    progress = phrases.progress(longer)
    had = jnp.take_along_axis(met, joined.parent[..., None], axis=1)
    has = had | phrases.completed(progress)
    at = _allocated(joined.score, phrases.bank(has, progress), beams)
    chosen = joined.take(at)
    met = jnp.take_along_axis(has, at[..., None], axis=1)

    last = (new + 1 >= rules.max_new)[:, None]
    at_end = jnp.where(last & phrases.all_met(met), chosen.score, -jnp.inf)
    cut = chosen._replace(score=at_end)
    ended = Candidates(*(jnp.concatenate(pair, axis=1) for pair in zip(stopped, cut)))
    return advanced(group, ended, chosen, new, rules), met, chosen


def _vocabulary_mask(ids: Array, vocabulary: int) -> Array:
    """bool [B, V], True at ``ids`` [B, m]; -1 is none."""
    mask = jnp.zeros((ids.shape[0], vocabulary), bool)
    at = jnp.where(ids < 0, vocabulary, ids)
    return jax.vmap(lambda row, i: row.at[i].set(True, mode="drop"))(mask, at)


def _windows(running: Running, new: Array, width: int) -> Array:
    """int32 [B, k, W], the last W new tokens of each text, after places without a token."""
    before = ((0, 0), (0, 0), (width, 0))
    padded = jnp.pad(running.tokens, before, constant_values=_BEFORE)
    return jax.lax.dynamic_slice_in_dim(padded, new, width, axis=2)


def _advancing(total: Array, met: Array, windows: Array, phrases: Phrases) -> Candidates:
    """[B, k * P * A], each text with the next token of each alternative that it lacks."""
    B, beams = total.shape[:2]
    progress = phrases.progress(windows)
    ids = jnp.broadcast_to(phrases.ids[:, None], (*progress.shape, phrases.width))
    next_place = jnp.minimum(progress, phrases.width - 1)
    token = jnp.take_along_axis(ids, next_place[..., None], axis=-1)[..., 0]
    lacking = ~met[..., None] & (token >= 0)
    token = jnp.maximum(token, 0).reshape(B, beams, -1)
    score = jnp.take_along_axis(total, token, axis=2)
    score = jnp.where(lacking.reshape(token.shape), score, -jnp.inf)
    parent = jnp.broadcast_to(jnp.arange(beams)[None, :, None], token.shape)
    return Candidates(*(a.reshape(B, -1) for a in (score, parent, token)))


def _best_of_each(total: Array) -> Candidates:
    """[B, k], each text with its most likely token."""
    B, beams, _ = total.shape
    token = jnp.argmax(total, axis=2)
    score = jnp.take_along_axis(total, token[..., None], axis=2)[..., 0]
    parent = jnp.broadcast_to(jnp.arange(beams), (B, beams))
    return Candidates(score, parent, token)


def _without_doubles(found: Candidates, vocabulary: int) -> Candidates:
    """``found`` with a score of -inf for what comes a second time."""
    text = found.parent * vocabulary + found.token
    places = jnp.arange(text.shape[1])
    earlier = places[None, None, :] < places[None, :, None]
    same = text[:, :, None] == text[:, None, :]
    real = found.score[:, None, :] > -jnp.inf
    again = jnp.any(same & earlier & real, axis=2)
    return found._replace(score=jnp.where(again, -jnp.inf, found.score))


def _allocated(score: Array, bank: Array, beams: int) -> Array:
    """int32 [B, k], which candidates get the beams.

    The best of each bank come first, from the fullest bank to the emptiest, then the second best
    of each, and so on.

    Args:
        score: float32 [B, n]; -inf is no candidate.
        bank: int32 [B, n].
        beams: k.
    """
    places = jnp.arange(score.shape[1])
    same_bank = bank[:, :, None] == bank[:, None, :]
    higher = score[:, None, :] > score[:, :, None]
    equal = score[:, None, :] == score[:, :, None]
    better = higher | (equal & (places[None, None, :] < places[None, :, None]))
    rank = jnp.sum(same_bank & better, axis=2)
    fullest = jnp.max(bank, axis=1, keepdims=True)
    order = rank * (fullest + 1) + (fullest - bank)
    order = jnp.where(score > -jnp.inf, order, jnp.iinfo(jnp.int32).max)
    return jnp.argsort(order, axis=1, stable=True)[:, :beams]
