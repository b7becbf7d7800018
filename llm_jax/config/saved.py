"""Configs on disk: JSON, and ``configs/*.py`` files."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from llm_jax.config.old_keys import tell_of_file, translate
from llm_jax.config.overrides import checked_value, chooses, nearest, override
from llm_jax.config.run import Config
from llm_jax.config.sections import NONE, ON, alternatives, kind_of, present, setting_of, settings
from llm_jax.storage.paths import local_file, path_of
from llm_jax.types import ConfigError

# Name in JSON of the alternative that a section is.
_KIND = "kind"


def to_json(config: Any) -> dict[str, Any]:
    """The resolved config as nested plain data; ``from_json`` is its inverse.

    A section with alternatives has the name of the one that it is under ``kind``, or is null.
    """
    out: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            choices = alternatives(type(config), field.name)
            name = {_KIND: kind_of(value)} if choices and kind_of(value) != ON else {}
            out[field.name] = name | to_json(value)
        else:
            out[field.name] = list(value) if isinstance(value, tuple) else value
    return out


def from_json(data: Mapping[str, Any], source: str = "config.json") -> Config:
    """A Config from nested plain data. Keys left out have their default.

    Only values that differ from their default count as set. Files of earlier versions are read.

    Raises:
        ConfigError: a key is unknown, or a value is of another type.
    """
    values, renamed = translate(dotted(data))
    chosen = {key: value for key, value in values.items() if chooses(Config(), key)}
    config = override(Config(), _changed(Config(), chosen), source)
    rest = {key: value for key, value in values.items() if key not in chosen}
    if renamed:
        tell_of_file(source, len(renamed))
        rest = {
            key: value for key, value in rest.items() if not _unused_default(config, key, value)
        }
    return override(config, _changed(config, rest), source)


def dotted(data: Mapping[str, Any]) -> dict[str, Any]:
    """Nested plain data, of ``to_json`` or of an earlier version, by dotted keys; nothing is
    checked.
    """
    return dict(_walk(data, ""))


def _walk(node: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in node.items():
        key = prefix + name
        if isinstance(value, Mapping):
            known = settings(Config).get(key)
            if known and known[0].alternatives:
                implied = ON if ON in known[0].alternatives else known[0].default
                yield key, value.get(_KIND, implied)
                value = {k: v for k, v in value.items() if k != _KIND}
            yield from _walk(value, f"{key}.")
        elif value is None and key in settings(Config):
            yield key, NONE
        else:
            yield key, value


def _changed(config: Config, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values that differ from their default."""
    out = {}
    known = present(config)
    for key, value in values.items():
        setting = known.get(key)
        if chooses(config, key):
            same = value == settings(Config)[key][0].default
        else:
            same = setting is not None and checked_value(setting, value) == setting.default
        if not same:
            out[key] = value
    return out


def _unused_default(config: Config, key: str, value: Any) -> bool:
    """Whether a setting of an earlier version has its default in a section that has it no more."""
    known = settings(Config).get(key, ())
    if not known or setting_of(config, key) is not None:
        return False
    return any(checked_value(setting, value) == setting.default for setting in known)


def load_config(path: str | Path) -> Config:
    """The Config of a ``configs/*.py`` file (its function ``config()``) or of a saved
    ``config.json``.

    Raises ConfigError when the file is missing, has no ``config`` function, or the function returns
    something else.
    """
    path = path_of(path)
    if not path.is_file():
        beside = path.parent.glob("*.py") if path.parent.is_dir() else ()
        near = nearest(path.name, [p.name for p in beside])
        raise ConfigError(f"there is no config file {str(path)!r}{near}")
    if path.suffix == ".json":
        return from_json(_read_json(path), str(path))
    result = getattr(_run(path), "config", lambda: None)()
    if not isinstance(result, Config):
        raise ConfigError(
            f"{path} must define a function config() that returns llm_jax.config.Config; got"
            f" {result!r}"
        )
    return result


def _read_json(path: Path) -> Mapping[str, Any]:
    try:
        data = json.loads(path.read_text())
    except ValueError as error:
        raise ConfigError(
            f"{path} is not valid JSON ({error}); restore it from a checkpoint's manifest"
        ) from error
    if not isinstance(data, Mapping):
        raise ConfigError(f"{path} has {type(data).__name__}, not the settings of a Config")
    return data


def _run(path: Path) -> Any:
    """The module that a configs/*.py file is."""
    spec = importlib.util.spec_from_file_location(f"llm_jax_config_{path.stem}", local_file(path))
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("llm_jax."):
            raise
        raise ConfigError(
            f"{path} imports {error.name}, which is not there; settings are in llm_jax.config:"
            " from llm_jax.config import Config, override"
        ) from error
    return module
