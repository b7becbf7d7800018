"""Which continuations are scored together: sorted by length, padded to few shapes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

# Prompts are padded to 32, 48, 64, 96, 128, 192 … tokens: a power of two from here on, or one and
# a half.
_LEAST_PROMPT = 32
# Continuations have one token, or are padded to a power of two from here on.
_LEAST = 8


class Pair(NamedTuple):
    """Token ids of a prompt and of a continuation."""

    context: tuple[int, ...]
    continuation: tuple[int, ...]


Group = Sequence[Pair]
"""Pairs of one context."""


class Shared(NamedTuple):
    """Prompts with several continuations each, scored together.

    Attributes:
        groups: the pairs of each prompt.
        prompt_rows: number of rows of prompts, with those that are filled up.
        prompt_width: tokens that prompts are padded to.
        rows: number of rows of continuations, with those that are filled up.
        width: tokens that continuations are padded to.
    """

    groups: Sequence[Group]
    prompt_rows: int
    prompt_width: int
    rows: int
    width: int

    @property
    def prompts(self) -> list[tuple[int, ...]]:
        return [group[0].context for group in self.groups]


class Alone(NamedTuple):
    """Prompts with one continuation each, scored together.

    Attributes:
        pairs: one of each prompt.
        prompt_width: tokens that prompts are padded to.
        rows: number of rows, with those that are filled up.
        width: tokens that continuations are padded to.
        whole_width: tokens that prompts with their continuations are padded to.
    """

    pairs: Sequence[Pair]
    prompt_width: int
    rows: int
    width: int
    whole_width: int


def with_several(pairs: Sequence[Pair], most: int, switch: int) -> tuple[list[Group], list[Pair]]:
    """Pairs by context where it has several continuations; and all others.

    Args:
        pairs: that differ.
        most: continuations of a group; a context with more has several groups.
        switch: ``ModelConfig.rope_switch``: a text that grows beyond it is read from its beginning,
            so that its prompt cannot be shared.
    """
    by_context: dict[tuple[int, ...], list[Pair]] = {}
    alone: list[Pair] = []
    for pair in pairs:
        size = len(pair.context)
        if switch and size <= switch < size + len(pair.continuation) - 1:
            alone.append(pair)
        else:
            by_context.setdefault(pair.context, []).append(pair)
    groups: list[Group] = []
    for found in by_context.values():
        for start in range(0, len(found), most):
            group = found[start : start + most]
            if len(group) > 1:
                groups.append(group)
            else:
                alone += group
    return groups, alone


def prompt_batches(
    groups: Sequence[Group], batch_size: int, ways: int, max_length: int
) -> Iterator[Shared]:
    """Batches of prompts with several continuations, the longest first.

    Args:
        groups: the pairs of each prompt.
        batch_size: continuations of a batch.
        ways: what the numbers of rows must divide by.
        max_length: that prompts are padded to at most.
    """
    if not groups:
        return
    mean = sum(map(len, groups)) // len(groups)
    prompt_rows = _multiple(max(batch_size // mean, 1), ways)
    # At least those of the largest group, so that each fits.
    rows = _multiple(max(prompt_rows * mean, *map(len, groups), 1), ways)
    batch: list[Group] = []
    used = 0
    for group in sorted(groups, key=_size_of_group, reverse=True):
        if batch and (len(batch) == prompt_rows or used + len(group) > rows):
            yield _shared(batch, prompt_rows, rows, max_length)
            batch = []
            used = 0
        batch.append(group)
        used += len(group)
    yield _shared(batch, prompt_rows, rows, max_length)


def pair_batches(
    pairs: Sequence[Pair], batch_size: int, ways: int, max_length: int
) -> Iterator[Alone]:
    """Batches of prompts with one continuation each, the longest first; arguments as of
    ``prompt_batches``.
    """
    rows = _multiple(batch_size, ways)
    ordered = sorted(pairs, key=_size_of_pair, reverse=True)
    for start in range(0, len(ordered), rows):
        batch = ordered[start : start + rows]
        prompt = max(len(pair.context) for pair in batch)
        longest = max(len(pair.continuation) for pair in batch)
        whole = max(len(pair.context) + len(pair.continuation) - 1 for pair in batch)
        yield Alone(
            pairs=batch,
            prompt_width=_prompt_width(prompt, max_length),
            rows=rows,
            width=_continuation_width(longest, max_length),
            whole_width=_prompt_width(whole, max_length),
        )


def _shared(groups: Sequence[Group], prompt_rows: int, rows: int, max_length: int) -> Shared:
    prompt = max(len(group[0].context) for group in groups)
    longest = max(len(pair.continuation) for group in groups for pair in group)
    return Shared(
        groups=groups,
        prompt_rows=prompt_rows,
        prompt_width=_prompt_width(prompt, max_length),
        rows=rows,
        width=_continuation_width(longest, max_length),
    )


def _size_of_group(group: Group) -> tuple[int, int]:
    """By padded prompt, then by longest continuation."""
    longest = max(len(pair.continuation) for pair in group)
    return _padded_prompt(len(group[0].context)), longest


def _size_of_pair(pair: Pair) -> tuple[int, int]:
    return _padded_prompt(len(pair.context) + len(pair.continuation)), len(pair.continuation)


def _prompt_width(tokens: int, most: int) -> int:
    return min(_padded_prompt(tokens), most)


def _padded_prompt(tokens: int) -> int:
    power = max(_LEAST_PROMPT, 1 << (tokens - 1).bit_length())
    between = power // 4 * 3
    return between if between >= max(tokens, _LEAST_PROMPT) else power


def _continuation_width(tokens: int, most: int) -> int:
    if tokens == 1:
        return 1
    return min(max(_LEAST, 1 << (tokens - 1).bit_length()), max(most, tokens))


def _multiple(number: int, of: int) -> int:
    return -(-number // of) * of
