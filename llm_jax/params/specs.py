"""Parameters by their specs: which of them a setting names."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Sequence

import jax

from llm_jax.types import ROLES, ConfigError, Params, ParamSpec

ROLE_PREFIX = "role:"


def path_name(path: tuple) -> str:
    """``layers/attention/query/kernel`` of a path in a tree of parameters."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def matching(patterns: Sequence[str], specs: Params, setting: str) -> Params:
    """A tree of bool: whether a parameter matches one of ``patterns``.

    Args:
        patterns: ``role:NAME``, a role of ``ParamSpec``; or a pattern of whole paths, such as
            ``layers/attention/*``, as in fnmatch (``*`` also matches ``/``).
        specs: the spec of each parameter (``Model.specs``).
        setting: what the patterns are of, for messages.

    Raises:
        ConfigError: a role that does not exist, or a path pattern that no parameter matches.
    """
    named = jax.tree_util.tree_flatten_with_path(specs)[0]
    names = [path_name(path) for path, _ in named]
    for pattern in patterns:
        _check(pattern, names, setting)

    def one(path: tuple, spec: ParamSpec) -> bool:
        name = path_name(path)
        return any(_matches(pattern, name, spec.role) for pattern in patterns)

    return jax.tree_util.tree_map_with_path(one, specs)


def _matches(pattern: str, name: str, role: str) -> bool:
    if pattern.startswith(ROLE_PREFIX):
        return role == pattern.removeprefix(ROLE_PREFIX)
    return fnmatch.fnmatchcase(name, pattern)


def _check(pattern: str, names: Sequence[str], setting: str) -> None:
    if pattern.startswith(ROLE_PREFIX):
        if pattern.removeprefix(ROLE_PREFIX) not in ROLES:
            raise ConfigError(
                f"{setting} has {pattern!r}, which is not a role; the roles are {', '.join(ROLES)}"
            )
        return
    if not any(fnmatch.fnmatchcase(name, pattern) for name in names):
        near = difflib.get_close_matches(pattern, names, n=3, cutoff=0.3) or names[:3]
        raise ConfigError(
            f"{setting} has {pattern!r}, which matches no parameter; parameters are, for example,"
            f" {', '.join(near)}"
        )
