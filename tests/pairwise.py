"""Matrices of cases, of which every run has a few and the nightly run all."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import pytest

Case = TypeVar("Case")
Values = Iterable[tuple[str, object]]
Pairs = set[tuple[object, ...]]


def pairs(values: Values, kinds: Sequence[tuple[str, str]]) -> Pairs:
    """Every value by itself, and every pair of two values whose kinds are one of ``kinds``."""
    values = sorted(set(values), key=str)
    wanted = {frozenset(kind) for kind in kinds}
    both = itertools.combinations(values, 2)
    return {(v,) for v in values} | {(a, b) for a, b in both if frozenset((a[0], b[0])) in wanted}


def cover(
    cases: Sequence[Case], values_of: Callable[[Case], Values], kinds: Sequence[tuple[str, str]]
) -> list[Case]:
    """Cases that together have all pairs of ``kinds`` that ``cases`` have, chosen greedily.

    Args:
        cases: the whole matrix.
        values_of: (kind, value) of a case, several of one kind where it has several.
        kinds: which kinds of values are wanted together.
    """
    left = [(case, pairs(values_of(case), kinds)) for case in cases]
    missing = set().union(*(found for _, found in left))
    chosen = []
    while missing:
        case, found = max(left, key=lambda one: len(one[1] & missing))
        chosen.append(case)
        missing -= found
    return chosen


def parametrize(
    names: str, cases: Iterable[Sequence], by_default: Sequence[Sequence]
) -> pytest.MarkDecorator:
    """``pytest.mark.parametrize`` with the cases not in ``by_default`` left to the nightly run.

    Raises:
        ValueError: a case of ``by_default`` is none of ``cases``.
    """
    cases = [tuple(case) for case in cases]
    by_default = [tuple(case) for case in by_default]
    if unknown := [case for case in by_default if case not in cases]:
        raise ValueError(f"{unknown} are no cases of {names}")
    parameters = [
        pytest.param(*case, marks=() if case in by_default else pytest.mark.slow) for case in cases
    ]
    return pytest.mark.parametrize(names, parameters)
