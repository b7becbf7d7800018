"""Which parameters are trained: selection by path or role, and the two trees that follow from it.

A tree of parameters is a nested dict; anything else in it is a leaf. ``split`` gives two such
dicts, each without the leaves of the other, and ``merge`` puts them together again. Neither copies
an array.
"""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from llm_jax.types import ROLES, ConfigError, Params

ALL = ("*",)
_ROLE = "role:"


def select(
    patterns: Sequence[str], specs: Params, setting: str, *, absent_roles: bool = False
) -> Params:
    """A tree of bool: whether each parameter matches one of ``patterns``.

    Args:
        patterns: of whole paths as in fnmatch, such as ``layers/attention/*`` (``*`` also matches
            ``/``); or ``role:NAME``, a role of ``ParamSpec``.
        specs: the spec of each parameter (``Model.specs``).
        setting: the setting that has the patterns, for messages.
        absent_roles: allow a role that no parameter of this model has.

    Raises:
        ConfigError: a role that does not exist, or a pattern that no parameter matches.
    """
    roles = {path: spec.role for path, spec in _paths(specs)}

    def matches(path: str, role: str, pattern: str) -> bool:
        if pattern.startswith(_ROLE):
            return role == pattern.removeprefix(_ROLE)
        return fnmatch.fnmatchcase(path, pattern)

    for pattern in patterns:
        if absent_roles and pattern.removeprefix(_ROLE) in ROLES:
            continue
        if not any(matches(path, role, pattern) for path, role in roles.items()):
            present_roles = sorted({_ROLE + role for role in roles.values()})
            known = present_roles if pattern.startswith(_ROLE) else list(roles)
            raise ConfigError(
                f"{setting} has {pattern!r}, which matches no parameter; the nearest are"
                f" {_nearest(pattern, known)}"
            )
    return _map(
        lambda path, spec: any(matches(path, spec.role, pattern) for pattern in patterns), specs
    )


def split(params: Params, chosen: Params) -> tuple[Params, Params]:
    """``params`` where ``chosen`` is True, and the rest.

    Args:
        params: parameters, or any tree with the same dicts, such as their specs.
        chosen: a tree of bool, of ``select``.
    """
    return _where(params, chosen, True), _where(params, chosen, False)


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


def present(params: Params, part: Params) -> Params:
    """A tree of bool: which leaves of ``params`` the pruned tree ``part`` has."""
    paths = dict(_paths(part))
    return _map(lambda path, _: path in paths, params)


def _where(params: Params, chosen: Params, wanted: bool) -> Params:
    kept = {}
    for name, value in params.items():
        if isinstance(value, dict):
            inner = _where(value, chosen[name], wanted)
            if inner:
                kept[name] = inner
        elif chosen[name] == wanted:
            kept[name] = value
    return kept


def _paths(params: Params, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in params.items():
        if isinstance(value, dict):
            yield from _paths(value, f"{prefix}{name}/")
        else:
            yield prefix + name, value


def _map(function: Callable[[str, Any], Any], params: Params, prefix: str = "") -> Params:
    return {
        name: _map(function, value, f"{prefix}{name}/")
        if isinstance(value, dict)
        else function(prefix + name, value)
        for name, value in params.items()
    }


def _nearest(pattern: str, names: list[str]) -> str:
    near = difflib.get_close_matches(pattern, names, n=3, cutoff=0.3) or names[:3]
    return ", ".join(near)
