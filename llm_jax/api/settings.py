"""Settings of a run, changed by whoever starts it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from llm_jax.config import Config
from llm_jax.config.overrides import check_unread, override, parse_assignments
from llm_jax.progress import note
from llm_jax.types import ConfigError


def with_settings(config: Config, set: Mapping[str, Any] | Sequence[str]) -> Config:
    """``config`` with settings changed: by their dotted keys, or as ``section.key=value``.

    Raises ConfigError for a setting that is unknown, of another type, or read by nothing.
    """
    if isinstance(set, Mapping):
        return check_settings(override(config, set, "train()"), set)
    if isinstance(set, str):
        raise ConfigError(f"set is the string {set!r}; give a mapping, or a list of assignments")
    keys = [word.partition("=")[0] for word in set]
    return check_settings(parse_assignments(config, set), keys)


def check_settings(config: Config, keys: Iterable[str]) -> Config:
    """``config``, whose settings ``keys`` were changed last.

    Raises ConfigError for a setting that nothing in the run reads; says so where a change has made
    one of the config file moot.
    """
    for moot in check_unread(config, keys):
        note(f"note: {moot}")
    return config
