"""Which parameters are trained: selection by path or role, and the two trees that follow from it.

A tree of parameters is a nested dict. ``split`` gives two such dicts, each without the leaves of
the other; ``merge`` puts them together again. Neither copies an array.
"""

from __future__ import annotations

from llm_jax.types import Params


def merge(trainable: Params, frozen: Params) -> Params:
    """The parameters of the model: every leaf of both trees, at its place.

    Raises:
        ValueError: a leaf that both trees have.
    """
    merged = dict(trainable)
    for name, value in frozen.items():
        if name not in merged:
            merged[name] = value
        elif isinstance(value, dict) and isinstance(merged[name], dict):
            merged[name] = merge(merged[name], value)
        else:
            raise ValueError(f"parameter {name!r} is in both the trainable and the frozen tree")
    return merged
