"""Changing, saving, loading and explaining a ``Config``: dotted keys, provenance, nearest names,
JSON, config files.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import functools
import importlib.util
import inspect
import json
import linecache
import sys
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from llm_jax.config import decode, model, run
from llm_jax.config.model import NONZERO
from llm_jax.config.old_keys import translate
from llm_jax.config.run import Config
from llm_jax.types import ConfigError


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """All settings of a (nested) config dataclass under dotted keys, in order of definition."""
    out: dict[str, Any] = {}
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if dataclasses.is_dataclass(value):
            out |= flatten(value, f"{prefix}{f.name}.")
        else:
            out[prefix + f.name] = value
    return out


def nearest(name: str, known: Iterable[str]) -> str:
    """``; did you mean 'x'?`` for the most similar known name, or an empty string where none is
    close.
    """
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if not close:
        leaf = name.rsplit(".", 1)[-1]
        close = [
            k
            for k in known
            if difflib.SequenceMatcher(None, leaf, k.rsplit(".", 1)[-1]).ratio() > 0.75
        ][:1]
    return f"; did you mean {close[0]!r}?" if close else ""


def _field(key: str, cls: type = Config) -> tuple[type, dataclasses.Field]:
    """The dataclass and the field behind a dotted key; ConfigError with the nearest name when there
    is none.
    """
    owner, parts = cls, key.split(".")
    for i, part in enumerate(parts):
        fields = {f.name: f for f in dataclasses.fields(owner)}
        if part in fields:
            inner = fields[part].default
            last = i == len(parts) - 1
            if last and not dataclasses.is_dataclass(inner):
                return owner, fields[part]
            if not last and dataclasses.is_dataclass(inner):
                owner = type(inner)
                continue
        break
    raise ConfigError(f"unknown setting {key!r}{nearest(key, flatten(cls()))}")


def _fits(value: Any, hint: Any) -> bool:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return value in args
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(v, args[0]) for v in value)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)


def _checked(key: str, value: Any) -> Any:
    """``value`` in the type of the setting ``key`` (lists become tuples, ints floats); ConfigError
    if it has another.
    """
    owner, f = _field(key)
    hint = typing.get_type_hints(owner)[f.name]
    value = tuple(value) if isinstance(value, list) else value
    if not _fits(value, hint):
        choices = typing.get_args(hint) if typing.get_origin(hint) is typing.Literal else ()
        wanted = (
            " or ".join(map(repr, choices)) or getattr(hint, "__name__", str(hint))
            if not _is_tuple(hint)
            else str(hint)
        )
        near = nearest(value, choices) if isinstance(value, str) else ""
        raise ConfigError(f"{key} is {value!r}; it must be {wanted}{near}")
    return float(value) if hint is float else value


def _is_tuple(hint: Any) -> bool:
    return typing.get_origin(hint) is tuple


def _replace_nested(config: Any, key: str, value: Any) -> Any:
    head, _, rest = key.partition(".")
    inner = _replace_nested(getattr(config, head), rest, value) if rest else value
    return dataclasses.replace(config, **{head: inner})


def provenance(config: Config) -> dict[str, str]:
    """Where each changed setting was set: dotted key -> place. Settings not named have their
    default.
    """
    set_by, defaults = dict(getattr(config, "_set_by", {})), flatten(Config())
    made = {
        k: "where the Config was made"
        for k, v in flatten(config).items()
        if v != defaults[k] and k not in set_by
    }
    return set_by | made


def override(config: Config, updates: Mapping[str, Any], source: str = "") -> Config:
    """``config`` with the dotted keys of ``updates`` changed, each checked for existence and type.

    Remembers where: ``source``, or the file and line of the caller. Raises ConfigError naming key
    and nearest name.
    """
    caller, set_by = sys._getframe(1), provenance(config)
    for key, value in updates.items():
        config = _replace_nested(config, key, _checked(key, value))
        set_by[key] = source or _line_of(key, caller.f_code.co_filename, caller.f_lineno)
    object.__setattr__(config, "_set_by", types.MappingProxyType(set_by))
    return config


def _line_of(key: str, file: str, first: int) -> str:
    """``file:line`` of the first line from ``first`` on that names the key; ``first`` itself if
    none does.
    """
    lines = linecache.getlines(file)
    line = next(
        (n for n, text in enumerate(lines[first - 1 :], first) if f'"{key}"' in text), first
    )
    return f"{file}:{line}"


def unread(config: Config) -> dict[str, str]:
    """Settings that were set although nothing in this run reads them: dotted key -> why. See
    ``config.only``.
    """
    values, out = flatten(config), {}
    for key in provenance(config):
        reason = _not_read(key, values)
        if reason:
            out[key] = reason
    return out


def _not_read(key: str, values: Mapping[str, Any]) -> str:
    _, f = _field(key)
    if "when" not in f.metadata:
        return ""
    sibling, allowed = f.metadata["when"]
    gate = key.rpartition(".")[0] + "." + sibling
    on = bool(values[gate]) if allowed == NONZERO else values[gate] in allowed
    if not on:
        wanted = "not 0" if allowed == NONZERO else " or ".join(map(repr, allowed))
        return f"it is read only when {gate} is {wanted}, and {gate} is {values[gate]!r}"
    return _not_read(gate, values)


def check_unread(config: Config, command_line: Iterable[str] = ()) -> list[str]:
    """Raise ConfigError for a key that was set and that nothing reads.

    A key of a config file whose gate was changed on the command line is returned as a note instead:
    the file is right by itself, and the newer choice made the key moot.
    """
    command_line, notes = set(command_line), []
    for key, reason in unread(config).items():
        place = provenance(config)[key]
        if key not in command_line and command_line.intersection(_gates(key)):
            notes.append(f"{key} (set at {place}) is not read: {reason}")
        else:
            raise ConfigError(
                f"{key} was set ({place}) but nothing in this run reads it: {reason}; remove it"
            )
    return notes


def _gates(key: str) -> list[str]:
    """The settings that decide whether ``key`` is read, nearest first."""
    _, f = _field(key)
    if "when" not in f.metadata:
        return []
    gate = key.rpartition(".")[0] + "." + f.metadata["when"][0]
    return [gate, *_gates(gate)]


def to_json(config: Config) -> dict[str, Any]:
    """The resolved config as nested plain data; ``from_json`` is its inverse."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def from_json(data: Mapping[str, Any], source: str = "config.json") -> Config:
    """A Config from nested plain data. Keys left out have their default; an unknown key is a
    ConfigError.

    Only values that differ from their default count as set.
    """

    def walk(node: Mapping[str, Any], prefix: str) -> Iterable[tuple[str, Any]]:
        for name, value in node.items():
            yield from (
                walk(value, f"{prefix}{name}.")
                if isinstance(value, Mapping)
                else [(prefix + name, value)]
            )

    defaults = flatten(Config())
    updates = {k: _checked(k, v) for k, v in translate(dict(walk(data, ""))).items()}
    return override(Config(), {k: v for k, v in updates.items() if v != defaults[k]}, source)


def load_config(path: str | Path) -> Config:
    """The Config of a ``configs/*.py`` file (its function ``config()``) or of a saved
    ``config.json``.

    Raises ConfigError when the file is missing, has no ``config`` function, or the function returns
    something else.
    """
    path = Path(path)
    if not path.is_file():
        near = (
            nearest(path.name, [p.name for p in path.parent.glob("*.py")])
            if path.parent.is_dir()
            else ""
        )
        raise ConfigError(f"there is no config file {str(path)!r}{near}")
    if path.suffix == ".json":
        try:
            data = json.loads(path.read_text())
        except ValueError as error:
            raise ConfigError(
                f"{path} is no JSON ({error}); restore it from a checkpoint's manifest"
            ) from error
        if not isinstance(data, Mapping):
            raise ConfigError(f"{path} holds {type(data).__name__}, not the settings of a Config")
        return from_json(data, str(path))
    spec = importlib.util.spec_from_file_location(f"llm_jax_config_{path.stem}", path)
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
    result = getattr(module, "config", lambda: None)()
    if not isinstance(result, Config):
        raise ConfigError(
            f"{path} must define a function config() that returns llm_jax.config.Config; got"
            f" {result!r}"
        )
    return result


@functools.cache
def _docs() -> dict[str, dict[str, tuple[str, str]]]:
    """class -> field -> (help text, file and line), read from the source of the dataclasses."""
    out: dict[str, dict[str, tuple[str, str]]] = {}
    for module in (run, model, decode):
        file = module.__name__.replace(".", "/") + ".py"
        for cls in ast.parse(inspect.getsource(module)).body:
            if not isinstance(cls, ast.ClassDef):
                continue
            for here, after in zip(cls.body, cls.body[1:] + [ast.Pass()]):
                if isinstance(here, ast.AnnAssign) and isinstance(here.target, ast.Name):
                    doc = (
                        after.value.value
                        if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
                        else ""
                    )
                    out.setdefault(cls.name, {})[here.target.id] = (
                        " ".join(str(doc).split()),
                        f"{file}:{here.lineno}",
                    )
    return out


def help_of(key: str) -> str:
    """The help text of a setting."""
    owner, f = _field(key)
    return _docs()[owner.__name__][f.name][0]


def explain(config: Config, key: str) -> str:
    """Value, place where it was set, meaning and condition of one setting, as a few lines
    of text.
    """
    owner, f = _field(key)
    value = flatten(config)[key]
    defined = _docs()[owner.__name__][f.name][1]
    kind = _type_name(typing.get_type_hints(owner)[f.name])
    place = provenance(config).get(key, f"default, {defined}")
    lines = [
        f"{key} = {value!r}",
        f"  set at   {place}",
        f"  type     {kind}",
        f"  default  {f.default!r}",
        f"  meaning  {help_of(key)}",
    ]
    reason = _not_read(key, flatten(config))
    if reason:
        lines.append(f"  note     not read by this config: {reason}")
    return "\n".join(lines)


def _type_name(hint: Any) -> str:
    if typing.get_origin(hint) is typing.Literal:
        return " | ".join(map(repr, typing.get_args(hint)))
    return str(hint) if _is_tuple(hint) else hint.__name__


def parse_assignments(config: Config, assignments: Iterable[str]) -> Config:
    """``config`` with ``section.key=value`` words applied; ConfigError for an unknown key or a
    value of another type.
    """
    updates = {}
    for word in assignments:
        key, sign, text = word.partition("=")
        if not sign:
            raise ConfigError(f"{word!r} is no assignment; write section.key=value")
        hint = typing.get_type_hints(_field(key)[0])[key.rpartition(".")[2]]
        try:
            updates[key] = (
                text
                if hint is str or typing.get_origin(hint) is typing.Literal
                else ast.literal_eval(text)
            )
        except (ValueError, SyntaxError) as error:
            raise ConfigError(f"{key} is {text!r}, which is no {hint}") from error
    return override(config, updates, "command line")
