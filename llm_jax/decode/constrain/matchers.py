"""Which tokens may come next in each row of a batch."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from llm_jax.decode.constrain.compiled import CompiledConstraint
from llm_jax.decode.constrain.library import llguidance
from llm_jax.decode.constrain.vocabulary import GrammarVocabulary
from llm_jax.types import ConfigError


@dataclass
class _Row:
    """One row of a batch.

    Attributes:
        matcher: llguidance's; None for a row without a constraint.
        begins: whether its text begins with it, and does not go on from a prompt.
        taken: number of tokens of the text so far.
        ended: whether a stop token has come after them.
    """

    matcher: Any
    begins: bool
    taken: int = 0
    ended: bool = False

    def copy(self) -> _Row:
        return replace(self, matcher=None if self.matcher is None else self.matcher.deep_copy())


class Matchers:
    """The rows of a batch, each at its place in its constraint.

    A row without a constraint allows every token, also one that stops it.

    Args:
        vocabulary: the tokens of the model.
        constraints: of each row; None is a row without one.
        begins: for each row, whether its text begins with it, as a translation does, and does not
            go on from the text of a prompt. None is False for all.

    Raises:
        ConfigError: a constraint was compiled for another vocabulary, or ``begins`` has another
            number of rows.
    """

    def __init__(
        self,
        vocabulary: GrammarVocabulary,
        constraints: Sequence[CompiledConstraint | None],
        begins: Sequence[bool] | None = None,
    ) -> None:
        if begins is None:
            begins = [False] * len(constraints)
        if len(begins) != len(constraints):
            raise ConfigError(f"begins has {len(begins)} rows, and there are {len(constraints)}")
        for row, given in enumerate(constraints):
            if given is not None and given.vocabulary is not vocabulary:
                raise ConfigError(
                    f"the constraint of row {row} was compiled for another vocabulary; compile it"
                    " for this one"
                )
        self.vocabulary = vocabulary
        self._rows = [
            _Row(None if given is None else given.matcher(), bool(start))
            for given, start in zip(constraints, begins)
        ]

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def constrained(self) -> np.ndarray:
        """bool [B], the rows that have a constraint."""
        return np.array([row.matcher is not None for row in self._rows], bool)

    @property
    def finished(self) -> np.ndarray:
        """bool [B], the rows whose text satisfies the constraint and cannot go on, or was stopped
        by a token.
        """
        return np.array([self.finished_in(row) for row in range(len(self))], bool)

    def finished_in(self, row: int) -> bool:
        """``finished`` of one row."""
        state = self._rows[row]
        return state.ended or _is_complete(state.matcher)

    @property
    def accepting(self) -> np.ndarray:
        """bool [B], the rows whose text satisfies the constraint as it is."""
        return np.array(
            [row.matcher is None or row.matcher.is_accepting() for row in self._rows], bool
        )

    def bitmask(self) -> np.ndarray:
        """The tokens that may come next: uint32 [B, ceil(V / 32)], the lowest bit first.

        A stop token may come where the text satisfies the constraint. A row that has finished
        allows stop tokens only, or every token where there are none. A row of zeros is at a dead
        end: the model has no token for what the constraint needs.
        """
        words = self.vocabulary.words
        filled = self._filled()
        mask = np.ascontiguousarray(filled[:, :words])
        for number, row in enumerate(self._rows):
            if row.matcher is None or row.ended:
                mask[number] = self._free(row)
                continue
            if row.matcher.is_error():
                # The mask of an error allows the end of the text.
                mask[number] = 0
                continue
            if row.begins and not row.taken:
                self._begin(mask[number], filled[number])
            if row.matcher.is_accepting():
                mask[number] |= self.vocabulary.stop_mask
                if row.matcher.is_stopped() and not self.vocabulary.stop_ids:
                    mask[number] = self._free(row)
            elif not mask[number].any():
                # llguidance allows one tokenization of a forced text, and not every vocabulary has
                # its tokens.
                mask[number] = self.vocabulary.mask_of(self._other_ways(row))
        return mask

    def draft_bitmask(self, drafts: Sequence[Sequence[int]]) -> np.ndarray:
        """``bitmask`` now, and after each token of a draft.

        Args:
            drafts: a draft of each row, all of n tokens.

        Returns:
            uint32 [B, n + 1, ceil(V / 32)]; zeros after a token that may not come.
        """
        n = len(drafts[0]) if drafts else 0
        masks = np.zeros((len(self), n + 1, self.vocabulary.words), np.uint32)
        taken = np.zeros(len(self), np.int64)
        for place in range(n + 1):
            goes_on = taken == place
            masks[goes_on, place] = self.bitmask()[goes_on]
            if place == n:
                break
            fits = goes_on & _allowed(masks[:, place], [draft[place] for draft in drafts])
            self.consume([[draft[place]] if fit else [] for draft, fit in zip(drafts, fits)])
            taken += fits
        self.rollback(taken.tolist())
        return masks

    def consume(self, tokens: Sequence[Sequence[int]]) -> None:
        """Appends tokens to the rows.

        Args:
            tokens: of each row, any number. Tokens after a stop token are not allowed.

        Raises:
            ConfigError: a token may not come there. Its row keeps the tokens before it.
        """
        for row, new in zip(range(len(self)), tokens, strict=True):
            self.consume_in(row, new)

    def consume_in(self, row: int, tokens: Sequence[int]) -> None:
        """``consume`` of one row."""
        state = self._rows[row]
        for token in tokens:
            if not self._take(state, int(token)):
                raise ConfigError(
                    f"row {row}: token {token} may not come after {state.taken} tokens of its"
                    " constraint; take one that bitmask allows"
                )

    def forced(self) -> list[list[int]]:
        """The tokens of each row for which the constraint leaves one text only.

        They are those that the tokenizer makes of this text, and are not consumed. Empty where the
        text may go on in several ways, or ends.
        """
        return [self.forced_in(row) for row in range(len(self))]

    def forced_in(self, row: int) -> list[int]:
        """``forced`` of one row."""
        return self._forced(self._rows[row])

    def rollback(self, counts: Sequence[int]) -> None:
        """Takes the last tokens of the rows back.

        Args:
            counts: of each row, how many; a stop token is one.

        Raises:
            ConfigError: a row has fewer tokens.
        """
        for number, (row, count) in enumerate(zip(self._rows, counts, strict=True)):
            if not 0 <= count <= row.taken + row.ended:
                raise ConfigError(
                    f"row {number}: cannot take {count} tokens back; it has {row.taken + row.ended}"
                )
            text = count - row.ended if count else 0
            row.ended = row.ended and not count
            if text and row.matcher is not None and not row.matcher.rollback(text):
                raise ConfigError(f"row {number}: {row.matcher.get_error()[:200]}")
            row.taken -= text

    def gather(self, rows: Sequence[int]) -> Matchers:
        """Matchers whose row b is a copy of row ``rows[b]`` of these."""
        made = Matchers(self.vocabulary, ())
        made._rows = [self._rows[int(row)].copy() for row in rows]
        return made

    def copy(self) -> Matchers:
        """A copy that goes its own way."""
        return self.gather(range(len(self)))

    def dead_end(self, row: int) -> str:
        """Why ``bitmask`` allows no token in a row; empty where it allows some."""
        matcher = self._rows[row].matcher
        if matcher is None or self.bitmask()[row].any():
            return ""
        if matcher.is_error():
            return matcher.get_error().split("\n", 1)[0]
        return "the model has no token for what the constraint needs"

    def _filled(self) -> np.ndarray:
        """What llguidance allows: uint32 [B, n], with second ids of tokens behind the others."""
        library = llguidance()
        width = -(-(self.vocabulary.end_id + 1) // 32)
        mask = np.zeros((len(self), width), np.int32)
        executor = self.vocabulary.executor
        open_rows = [
            (row.matcher, number)
            for number, row in enumerate(self._rows)
            if row.matcher is not None and not row.ended
        ]
        if executor is not None and len(open_rows) > 1:
            library.numpy.fill_next_token_bitmask_par(executor, open_rows, mask)
            return mask.view(np.uint32)
        for matcher, number in open_rows:
            library.numpy.fill_next_token_bitmask(matcher, mask, number)
        return mask.view(np.uint32)

    def _begin(self, mask: np.ndarray, filled: np.ndarray) -> None:
        """Lets second ids stand for the tokens that may begin a text."""
        vocabulary = self.vocabulary
        bits = np.unpackbits(filled.view(np.uint8), bitorder="little")
        has_text = vocabulary.start_ids >= 0
        allowed = np.where(has_text, bits[vocabulary.start_ids], 0)
        bits[vocabulary.starts] = allowed
        mask[:] = np.packbits(bits, bitorder="little").view(np.uint32)[: len(mask)]

    def _free(self, row: _Row) -> np.ndarray:
        """The mask of a row without a constraint, or of one that has finished."""
        if row.matcher is not None and self.vocabulary.stop_ids:
            return self.vocabulary.stop_mask
        return np.full(self.vocabulary.words, 2**32 - 1, np.uint32)

    def _other_ways(self, row: _Row) -> list[int]:
        """All tokens that may come where the next bytes of the text are given."""
        text = row.matcher.compute_ff_bytes()
        at_start = row.begins and not row.taken
        fitting = self.vocabulary.fitting(text, at_start) if text else []
        return [id for id in fitting if self._fits(row, id)]

    def _fits(self, row: _Row, token: int) -> bool:
        known = self._known_as(row, token)
        return known >= 0 and row.matcher.validate_tokens([known]) == 1

    def _take(self, row: _Row, token: int) -> bool:
        """Appends one token; False where it may not come."""
        if row.ended:
            return False
        if token in self.vocabulary.stop_ids:
            row.ended = row.matcher is None or row.matcher.is_accepting()
            return row.ended
        if row.matcher is not None:
            if not self._fits(row, token):
                return False
            row.matcher.consume_token(self._known_as(row, token))
        row.taken += 1
        return True

    def _known_as(self, row: _Row, token: int) -> int:
        """The id that stands for a token at its place; -1 for a token that is never allowed."""
        vocabulary = self.vocabulary
        if not vocabulary.has_text(token):
            return -1
        if row.begins and not row.taken:
            return vocabulary.begins_as(token)
        return token

    def _forced(self, row: _Row) -> list[int]:
        if row.matcher is None or row.ended or row.matcher.is_stopped():
            return []
        tokens = row.matcher.compute_ff_tokens()
        if tokens and self._known_as(row, tokens[0]) != tokens[0]:
            return []
        known = itertools.takewhile(self.vocabulary.has_text, tokens)
        return list(known)[: row.matcher.validate_tokens(tokens)]


def _is_complete(matcher: Any) -> bool:
    return matcher is not None and matcher.is_stopped() and not matcher.is_error()


def _allowed(mask: np.ndarray, tokens: Sequence[int]) -> np.ndarray:
    """bool [B], whether a mask [B, W] allows the token of each row."""
    ids = np.asarray(tokens, np.int64)
    words = mask[np.arange(len(ids)), ids // 32]
    return (words >> (ids % 32).astype(np.uint32)) & 1 == 1
