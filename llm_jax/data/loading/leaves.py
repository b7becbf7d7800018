"""The arrays of a batch, whatever its fields are: what jax does with a tree, in numpy alone.

A batch is a NamedTuple of arrays, of None where a field is absent, and of further NamedTuples and
dicts of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np


def leaves(tree: Any, path: str = "") -> Iterator[tuple[str, np.ndarray]]:
    """Every array with its path, as in ``extras/weights``."""
    for name, value in _children(tree):
        inner = f"{path}/{name}" if path else name
        if value is None:
            continue
        if _is_node(value):
            yield from leaves(value, inner)
        else:
            yield inner, np.asarray(value)


def map_leaves(function: Callable[..., Any], tree: Any, *others: Any) -> Any:
    """A tree like ``tree`` with ``function`` of its arrays and of those at the same places of
    ``others``.
    """
    if tree is None:
        return None
    if not _is_node(tree):
        return function(tree, *others)
    parts = [dict(_children(other)) for other in others]
    mapped = {
        name: map_leaves(function, value, *(part[name] for part in parts))
        for name, value in _children(tree)
    }
    return mapped if isinstance(tree, dict) else type(tree)(**mapped)


def _is_node(value: Any) -> bool:
    return isinstance(value, dict) or hasattr(value, "_fields")


def _children(node: Any) -> list[tuple[str, Any]]:
    if isinstance(node, dict):
        return sorted(node.items())
    return [(name, getattr(node, name)) for name in node._fields]
