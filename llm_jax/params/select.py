"""Which parameters are trained: selection by path or role, and the two trees that follow from it.

A tree of parameters is a nested dict of weights. A weight is an array or a leaf type of
``ops.weights``, whose parts can be chosen one by one: ``layers/mlp/up/kernel/a`` is the array ``a``
of a ``LowRank``. ``split`` gives two trees, each without the arrays of the other, and ``merge``
puts them together again. Neither copies an array.
"""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from llm_jax.ops.weights import WeightLeaf
from llm_jax.types import ROLES, ConfigError, Params

ALL = ("*",)
_ROLE = "role:"


class _Leaf(NamedTuple):
    """One array of a tree, or what stands in its place.

    paths: its own path, after those of the weights that it is a part of.
    value: the array.
    """

    paths: tuple[str, ...]
    value: Any


def select(
    patterns: Sequence[str], specs: Params, setting: str, *, absent_roles: bool = False
) -> Params:
    """A tree of bool: whether each parameter matches one of ``patterns``.

    Args:
        patterns: of whole paths as in fnmatch, such as ``layers/attention/*`` (``*`` also matches
            ``/``); or ``role:NAME``, a role of ``ParamSpec``. The path of a weight selects all of
            its parts.
        specs: the spec of each parameter (``Model.specs``, or ``ops.weights.expand_specs`` for the
            parts of leaf types).
        setting: the setting that has the patterns, for messages.
        absent_roles: allow a role that no parameter of this model has.

    Raises:
        ConfigError: a role that does not exist, or a pattern that no parameter matches.
    """
    leaves = list(_leaves(specs))
    for pattern in patterns:
        if absent_roles and pattern.removeprefix(_ROLE) in ROLES:
            continue
        if not any(_matches(leaf, pattern) for leaf in leaves):
            present_roles = sorted({_ROLE + leaf.value.role for leaf in leaves})
            paths = [leaf.paths[-1] for leaf in leaves]
            known = present_roles if pattern.startswith(_ROLE) else paths
            raise ConfigError(
                f"{setting} has {pattern!r}, which matches no parameter; the nearest are"
                f" {_nearest(pattern, known)}"
            )
    chosen = [any(_matches(leaf, pattern) for pattern in patterns) for leaf in leaves]
    return _with_values(specs, iter(chosen))


def _matches(leaf: _Leaf, pattern: str) -> bool:
    if pattern.startswith(_ROLE):
        return leaf.value.role == pattern.removeprefix(_ROLE)
    return any(fnmatch.fnmatchcase(path, pattern) for path in leaf.paths)


def split(params: Params, chosen: Params) -> tuple[Params, Params]:
    """``params`` where ``chosen`` is True, and the rest.

    Args:
        params: parameters, or any tree with the same dicts, such as their specs.
        chosen: a tree of bool, of ``select``.
    """
    return _where(params, chosen, True) or {}, _where(params, chosen, False) or {}


def merge(trainable: Params, frozen: Params) -> Params:
    """The parameters of the model: every leaf of both trees, at its place.

    Raises:
        ValueError: a leaf that both trees have.
    """
    return _merge(trainable, frozen, "")


def present(params: Params, part: Params) -> Params:
    """A tree of bool: which leaves of ``params`` the pruned tree ``part`` has."""
    kept = {leaf.paths[-1] for leaf in _leaves(part)}
    return _with_values(params, iter([leaf.paths[-1] in kept for leaf in _leaves(params)]))


def _children(node: Any) -> dict[str, Any] | None:
    """What a node of a tree is made of, by name; None for an array."""
    if isinstance(node, dict):
        return node
    if isinstance(node, WeightLeaf):
        # A leaf type without arrays is kept as it is.
        return node.parts() or None
    return None


def _rebuilt(node: Any, children: dict[str, Any]) -> Any:
    """A node like ``node`` with these children."""
    return node.with_parts(children) if isinstance(node, WeightLeaf) else children


def _leaves(node: Any, paths: tuple[str, ...] = ("",)) -> Iterator[_Leaf]:
    """The arrays of a tree in order; those that ``split`` took out are left out."""
    children = _children(node)
    if children is None:
        if node is not None:
            yield _Leaf(paths, node)
        return
    inside = paths if isinstance(node, WeightLeaf) else ()
    prefix = f"{paths[-1]}/" if paths[-1] else ""
    for name, child in children.items():
        yield from _leaves(child, (*inside, prefix + name))


def _with_values(node: Any, values: Iterator[Any]) -> Any:
    """The tree with one of ``values`` in the place of each array."""
    children = _children(node)
    if children is None:
        return None if node is None else next(values)
    return _rebuilt(node, {name: _with_values(child, values) for name, child in children.items()})


def _where(node: Any, chosen: Any, wanted: bool) -> Any:
    """The part of a tree where ``chosen`` is ``wanted``; None where that is nothing."""
    choices = _children(chosen)
    if choices is None:
        return node if chosen == wanted else None
    children = _children(node) or {}
    found = {name: _where(child, choices[name], wanted) for name, child in children.items()}
    kept = {name: child for name, child in found.items() if child is not None}
    return _rebuilt(node, kept) if kept else None


def _merge(one: Any, other: Any, path: str) -> Any:
    if one is None or other is None:
        return other if one is None else one
    left = _children(one)
    right = _children(other)
    if left is None or right is None:
        raise ValueError(f"parameter {path!r} is in both the trainable and the frozen tree")
    prefix = f"{path}/" if path else ""
    names = dict.fromkeys([*left, *right])
    return _rebuilt(
        one, {name: _merge(left.get(name), right.get(name), prefix + name) for name in names}
    )


def _nearest(pattern: str, names: list[str]) -> str:
    near = difflib.get_close_matches(pattern, names, n=3, cutoff=0.3) or names[:3]
    return ", ".join(near)
