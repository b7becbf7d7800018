"""Layouts of one tensor in two programs, written as patterns such as ``(n h) d -> d n h``: the
source layout on the left, the native layout on the right.

A letter is an axis. Letters in brackets are one axis that runs over all of them, the last letter
fastest. A number is an axis of that size.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from functools import cache

import numpy as np

_AXIS = re.compile(r"\(([^()]*)\)|(\S+)")
# The letters or numbers of each axis.
_Side = tuple[tuple[str, ...], ...]


def _parse_side(side: str) -> _Side:
    return tuple(tuple((group or one).split()) for group, one in _AXIS.findall(side))


@cache
def _sides(pattern: str) -> tuple[_Side, _Side]:
    """The source side and the native side of a pattern."""
    left, right = pattern.split("->")
    source = _parse_side(left)
    native = _parse_side(right)
    assert sorted(_flat(source)) == sorted(_flat(native)), pattern
    return source, native


def _flat(side: _Side) -> list[str]:
    return list(itertools.chain.from_iterable(side))


def _sizes(pattern: str, native_shape: Sequence[int]) -> dict[str, int]:
    """Size of every letter and number. In each axis of the native side all but one must be numbers,
    or there is no way to tell the sizes of its letters.
    """
    sizes: dict[str, int] = {}
    for axes, size in zip(_sides(pattern)[1], native_shape, strict=True):
        numbers = {axis: int(axis) for axis in axes if axis.isdigit()}
        letters = [axis for axis in axes if not axis.isdigit()]
        known = math.prod(numbers.values())
        assert len(letters) == 1 and size % known == 0, (pattern, native_shape)
        sizes |= {letters[0]: size // known} | numbers
    return sizes


def rank(pattern: str) -> int:
    """Number of axes of the native tensor."""
    return len(_sides(pattern)[1])


def source_shape(pattern: str, native_shape: Sequence[int]) -> tuple[int, ...]:
    """Shape of the source tensor for a native tensor of ``native_shape``."""
    sizes = _sizes(pattern, native_shape)
    return tuple(math.prod(sizes[axis] for axis in axes) for axes in _sides(pattern)[0])


def size_of(pattern: str, letter: str, native_shape: Sequence[int]) -> int:
    """Size of one letter for a native tensor of ``native_shape``."""
    return _sizes(pattern, native_shape)[letter]


def to_native(x: np.ndarray, pattern: str, native_shape: Sequence[int]) -> np.ndarray:
    """The source tensor ``x`` in the native layout; a view of ``x`` where numpy can make one."""
    source, native = _sides(pattern)
    return _rearranged(x, source, native, _sizes(pattern, native_shape)).reshape(native_shape)


def to_source(x: np.ndarray, pattern: str) -> np.ndarray:
    """The native tensor ``x`` in the source layout; a view of ``x`` where numpy can make one."""
    source, native = _sides(pattern)
    turned = _rearranged(x, native, source, _sizes(pattern, x.shape))
    return turned.reshape(source_shape(pattern, x.shape))


def _rearranged(x: np.ndarray, before: _Side, after: _Side, sizes: dict[str, int]) -> np.ndarray:
    """``x`` with an axis for each letter or number, in the order of ``after``."""
    axes = _flat(before)
    split_up = x.reshape([sizes[axis] for axis in axes])
    return split_up.transpose([axes.index(axis) for axis in _flat(after)])


def split(x: np.ndarray, axis: int, groups: int, sizes: Sequence[int]) -> list[np.ndarray]:
    """The parts of a source tensor along ``axis``.

    Args:
        x: The source tensor.
        axis: Axis along which the parts are concatenated.
        groups: Number of equal pieces of the axis, each of which holds a share of every part.
        sizes: Total size of each part along the axis.
    """
    shape = x.shape
    shares = [size // groups for size in sizes]
    grouped = x.reshape(*shape[:axis], groups, sum(shares), *shape[axis + 1 :])
    parts = np.split(grouped, np.cumsum(shares)[:-1], axis=axis + 1)
    return [
        part.reshape(*shape[:axis], size, *shape[axis + 1 :]) for part, size in zip(parts, sizes)
    ]


def join(parts: Sequence[np.ndarray], axis: int, groups: int) -> np.ndarray:
    """The inverse of ``split``."""
    if len(parts) == 1:
        return parts[0]
    shape = parts[0].shape
    grouped = [
        part.reshape(*shape[:axis], groups, part.shape[axis] // groups, *shape[axis + 1 :])
        for part in parts
    ]
    return np.concatenate(grouped, axis=axis + 1).reshape(*shape[:axis], -1, *shape[axis + 1 :])
