"""What the model verifies of a draft under constraints: tokens and masks of several places."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from llm_jax.decode.constrain.matchers import Matchers

Following = Callable[[int, int], list[int]]
"""The tokens of a row that follow a drawn token without a draw, given how many are new."""


class Plan(NamedTuple):
    """What the model verifies in one round; G places.

    Attributes:
        tokens: int32 [G, B].
        counts: int32 [B], how many each row has.
        given: bool [G, B], tokens that come without a draw: their masks allow nothing else.
        masks: uint32 [G + 1, B, ceil(V / 32)], tokens that may come at each place.
        same: int32 [B], how many of the first tokens are those that were drafted.
    """

    tokens: np.ndarray
    counts: np.ndarray
    given: np.ndarray
    masks: np.ndarray
    same: np.ndarray


def planned(
    matchers: Matchers,
    tokens: np.ndarray,
    counts: np.ndarray,
    *,
    rows: Iterable[int],
    ready: list[list[int]],
    following: Following,
) -> Plan:
    """Follows the constraint of each row along its draft, up to the first token that it forbids.

    This token stays: the model rejects it, and draws another in its place as after any rejection.
    Tokens without a draw come in the place of drafted ones; where they differ, the draft ends.

    Args:
        matchers: of each row; they are afterwards where they were before.
        tokens: int32 [G, B], that were drafted.
        counts: int32 [B], how many of each row.
        rows: that go on; the others get no token.
        ready: tokens of each row that come first, without a draw.
        following: as ``Following``.
    """
    walk = _Walk(matchers, tokens, counts, ready)
    constrained = matchers.constrained
    going = []
    for row in rows:
        if constrained[row]:
            going.append(row)
        else:
            walk.take_free(row)
    for place in range(len(tokens) + 1):
        if not going:
            break
        masks = matchers.bitmask()
        going = [row for row in going if walk.step(row, place, masks[row], following)]
    matchers.rollback(walk.taken.tolist())
    return walk.plan


class _Walk:
    """A plan while it is made.

    Attributes:
        plan: what is known of it.
        taken: int64 [B], tokens that matchers have taken.
    """

    def __init__(
        self, matchers: Matchers, tokens: np.ndarray, counts: np.ndarray, ready: list[list[int]]
    ) -> None:
        G, B = tokens.shape
        self._matchers = matchers
        self._drafted = tokens
        self._most = counts
        self._ready = [list(row) for row in ready]
        self.taken = np.zeros(B, np.int64)
        self.plan = Plan(
            tokens=tokens.copy(),
            counts=np.zeros(B, np.int32),
            given=np.zeros((G, B), bool),
            masks=np.zeros((G + 1, B, matchers.vocabulary.words), np.uint32),
            same=np.zeros(B, np.int32),
        )

    def take_free(self, row: int) -> None:
        """The whole draft of a row without a constraint."""
        plan = self.plan
        plan.masks[:, row] = 2**32 - 1
        plan.counts[row] = self._most[row]
        plan.same[row] = self._most[row]

    def step(self, row: int, place: int, mask: np.ndarray, following: Following) -> bool:
        """Plans one place of a row; whether the next is to be planned too."""
        plan = self.plan
        ready = self._ready[row]
        plan.masks[place, row] = self._matchers.vocabulary.mask_of(ready[:1]) if ready else mask
        if place == len(plan.tokens):
            return False
        as_drafted = plan.same[row] == place and place < self._most[row]
        if ready:
            token = ready.pop(0)
            plan.given[place, row] = True
        elif as_drafted:
            token = int(self._drafted[place, row])
        else:
            return False
        plan.tokens[place, row] = token
        plan.counts[row] = place + 1
        plan.same[row] += as_drafted and token == self._drafted[place, row]
        if not has_bit(plan.masks[place, row], token):
            return False
        self._matchers.consume_in(row, [token])
        self.taken[row] += 1
        if self._matchers.finished_in(row):
            return False
        if not plan.given[place, row]:
            self._ready[row] = following(row, place + 1)
        return True


def has_bit(mask: np.ndarray, token: int) -> bool:
    """Whether ``mask`` uint32 [ceil(V / 32)] allows a token."""
    return bool((int(mask[token // 32]) >> token % 32) & 1)
