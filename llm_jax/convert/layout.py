"""Layouts of one tensor in two programs, written as patterns: ``(n h) d -> d n h``, theirs on the
left, ours on the right.

A letter is an axis, letters in brackets are one axis of theirs (or ours) that goes over all of
them, the last fastest; a number is an axis of that size.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from functools import cache

import numpy as np

_AXIS = re.compile(r"\(([^()]*)\)|(\S+)")


@cache
def _sides(pattern: str) -> tuple[tuple[tuple[str, ...], ...], tuple[tuple[str, ...], ...]]:
    left, right = pattern.split("->")

    def read(side):
        return tuple(tuple((group or one).split()) for group, one in _AXIS.findall(side))

    source, native = read(left), read(right)
    assert sorted(sum(source, ())) == sorted(sum(native, ())), pattern
    return source, native


def _sizes(pattern: str, shape: Sequence[int]) -> dict[str, int]:
    """Size of every letter, by the shape of ours; in a bracket of ours all but one must
    be numbers.
    """
    sizes: dict[str, int] = {}
    for axes, size in zip(_sides(pattern)[1], shape, strict=True):
        numbers = math.prod(int(a) for a in axes if a.isdigit())
        letters = [a for a in axes if not a.isdigit()]
        assert len(letters) == 1 and size % numbers == 0, (pattern, shape)
        sizes |= {letters[0]: size // numbers} | {a: int(a) for a in axes if a.isdigit()}
    return sizes


def rank(pattern: str) -> int:
    """Axes of ours."""
    return len(_sides(pattern)[1])


def their_shape(pattern: str, shape: Sequence[int]) -> tuple[int, ...]:
    """Shape of theirs for ours of ``shape``."""
    sizes = _sizes(pattern, shape)
    return tuple(math.prod(sizes[a] for a in axes) for axes in _sides(pattern)[0])


def size_of(pattern: str, letter: str, shape: Sequence[int]) -> int:
    """Size of one letter for ours of ``shape``."""
    return _sizes(pattern, shape)[letter]


def to_ours(x: np.ndarray, pattern: str, shape: Sequence[int]) -> np.ndarray:
    """Theirs laid out as ours, which has ``shape``; a view where it can be one."""
    source, native = _sides(pattern)
    sizes, before = _sizes(pattern, shape), sum(source, ())
    return (
        x.reshape([sizes[a] for a in before])
        .transpose([before.index(a) for a in sum(native, ())])
        .reshape(shape)
    )


def to_theirs(x: np.ndarray, pattern: str) -> np.ndarray:
    """Ours laid out as theirs; a view where it can be one."""
    source, native = _sides(pattern)
    sizes, before = _sizes(pattern, x.shape), sum(native, ())
    turned = x.reshape([sizes[a] for a in before]).transpose(
        [before.index(a) for a in sum(source, ())]
    )
    return turned.reshape(their_shape(pattern, x.shape))


def split(x: np.ndarray, axis: int, groups: int, sizes: Sequence[int]) -> list[np.ndarray]:
    """Parts of theirs along ``axis``, which in each of ``groups`` equal pieces holds every part in
    turn, ``sizes[i]`` of it in all.
    """
    shape = x.shape
    per = [s // groups for s in sizes]
    whole = x.reshape(*shape[:axis], groups, sum(per), *shape[axis + 1 :])
    cuts = np.split(whole, np.cumsum(per)[:-1], axis=axis + 1)
    return [c.reshape(*shape[:axis], s, *shape[axis + 1 :]) for c, s in zip(cuts, sizes)]


def join(parts: Sequence[np.ndarray], axis: int, groups: int) -> np.ndarray:
    """The inverse of ``split``."""
    if len(parts) == 1:
        return parts[0]
    shape = parts[0].shape
    pieces = [
        p.reshape(*shape[:axis], groups, p.shape[axis] // groups, *shape[axis + 1 :]) for p in parts
    ]
    return np.concatenate(pieces, axis=axis + 1).reshape(*shape[:axis], -1, *shape[axis + 1 :])
