"""Changing a ``Config`` by dotted keys, and where each setting was set."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import linecache
import sys
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from llm_jax.config.model import ModelConfig
from llm_jax.config.old_keys import Translated, tell, translate
from llm_jax.config.run import Config
from llm_jax.config.sections import (
    NONE,
    NONZERO,
    ON,
    Setting,
    flatten,
    kind_of,
    present,
    setting_of,
    settings,
)
from llm_jax.types import ConfigError

_C = TypeVar("_C")


def nearest_setting(key: str, known: Iterable[str]) -> str:
    """As ``nearest``, of dotted keys: the whole key and its last name count as much."""
    whole = difflib.SequenceMatcher(b=key)
    leaf = difflib.SequenceMatcher(b=key.rpartition(".")[2])
    best = ""
    best_score = 1.2
    for name in known:
        whole.set_seq1(name)
        leaf.set_seq1(name.rpartition(".")[2])
        # Upper bounds, which cost little.
        if whole.quick_ratio() + leaf.quick_ratio() <= best_score:
            continue
        score = whole.ratio() + leaf.ratio()
        if score > best_score:
            best = name
            best_score = score
    return f"; did you mean {best!r}?" if best else ""


def nearest(name: str, known: Iterable[str]) -> str:
    """``; did you mean 'x'?`` for the most similar known name, or an empty string where none is
    close.
    """
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


def override(config: _C, updates: Mapping[str, Any], source: str = "") -> _C:
    """``config`` with the dotted keys of ``updates`` changed, each checked for existence and type.

    A section with alternatives is set to the name of one of them (``"model.positions":
    "learned"``), and has its fields from then on; fields that both alternatives have keep their
    values. Setting a field of a section that is not there makes the section.

    Args:
        config: a ``Config``, or a section such as a ``ModelConfig``.
        updates: values by dotted keys, in any order.
        source: where the values come from, for ``provenance``; else the file and line of the
            caller.

    Raises:
        ConfigError: a key is unknown (the message names the nearest), is one of an alternative that
            the section is not, or has a value of another type.
    """
    caller = sys._getframe(1)
    set_by = provenance(config)
    dropped = dict(getattr(config, "_dropped", {}))
    values, renamed = _today(config, updates)
    tell(tuple(renamed.items()))
    file = caller.f_code.co_filename
    places = {key: source or _line_of(key, file, caller.f_lineno) for key in values}
    # A section inside another comes after it.
    choices = sorted((key for key in values if chooses(config, key)), key=_depth)
    for key in choices:
        before = flatten(config)
        config = _choose(config, key, values[key], places[key])
        for lost in before.keys() - flatten(config).keys() & set_by.keys():
            dropped[lost] = (set_by.pop(lost), why_absent(config, lost))
    known = present(config)
    for key in (key for key in values if key not in choices):
        if key not in known:
            config = with_sections(config, key, places[key])
            known = present(config)
        config = _replace(config, key, checked_value(known[key], values[key]))
    for key in values:
        set_by[key] = places[key]
        dropped.pop(key, None)
    object.__setattr__(config, "_set_by", types.MappingProxyType(set_by))
    object.__setattr__(config, "_dropped", types.MappingProxyType(dropped))
    return config


def _depth(key: str) -> int:
    return key.count(".")


def _today(config: Any, updates: Mapping[str, Any]) -> Translated:
    """``updates`` of a Config or a ModelConfig with the settings of today; other sections had no
    others.
    """
    if isinstance(config, ModelConfig):
        return translate(updates, prefix="model.")
    if isinstance(config, Config):
        return translate(updates)
    return Translated(dict(updates), {})


def chooses(config: Any, key: str) -> bool:
    """Whether the key is that of a section with alternatives, which comes before its fields."""
    return any(setting.alternatives for setting in settings(type(config)).get(key, ()))


def _choose(config: _C, key: str, name: Any, place: str) -> _C:
    """``config`` with the section ``key`` as its alternative ``name``."""
    config = with_sections(config, key, place)
    return _replace(config, key, _chosen(config, present(config)[key], name))


def with_sections(config: _C, key: str, place: str) -> _C:
    """``config`` with the optional sections that the key is in, where these have one form alone.

    Args:
        config: a ``Config`` or a section.
        key: the dotted key that is to be set.
        place: where it is set, for the message.

    Raises:
        ConfigError: the key is unknown, or one of an alternative that a section is not.
    """
    out = config
    for setting in settings(type(config)).get(key, ()):
        for section, name in setting.chosen_by:
            if name == ON and flatten(out).get(section) == NONE:
                out = _choose(out, section, ON, place)
    if setting_of(out, key) is None:
        _refuse_key(out, key, place)
    for record in ("_set_by", "_dropped"):
        object.__setattr__(out, record, getattr(config, record, types.MappingProxyType({})))
    return out


def _refuse_key(config: Any, key: str, place: str) -> typing.NoReturn:
    known = settings(type(config))
    if key not in known:
        raise ConfigError(f"unknown setting {key!r}{nearest_setting(key, known)}")
    raise ConfigError(
        f"{key} was set ({place}) but nothing in this run reads it: {why_absent(config, key)};"
        " remove it"
    )


def why_absent(config: Any, key: str) -> str:
    """Which sections the key is in, and what these are."""
    values = flatten(config)
    wanted: dict[str, dict[str, None]] = {}
    for setting in settings(type(config))[key]:
        for section, name in setting.chosen_by:
            if values.get(section) != name:
                wanted.setdefault(section, {})[name] = None
                break
    return " and ".join(
        f"it is read only when {section} is {' or '.join(map(repr, names))}, and {section} is"
        f" {values[section]!r}"
        for section, names in wanted.items()
    )


def _chosen(config: Any, setting: Setting, name: Any) -> Any:
    """The section as the alternative ``name``; fields that differ from their default and that the
    new alternative has keep their values.
    """
    key = setting.key
    if not isinstance(name, str) or name not in setting.alternatives:
        choices = " or ".join(map(repr, setting.alternatives))
        near = nearest(name, setting.alternatives) if isinstance(name, str) else ""
        raise ConfigError(f"{key} is {name!r}; it must be {choices}{near}")
    old = _get(config, key)
    new = setting.alternatives[name]
    if kind_of(old) == name or new is None:
        return old if kind_of(old) == name else None
    kept = {}
    if old is not None:
        names = {field.name for field in dataclasses.fields(new)}
        for field in dataclasses.fields(old):
            value = getattr(old, field.name)
            if field.name in names and value != field.default:
                kept[field.name] = value
    return new(**kept)


def _get(config: Any, key: str) -> Any:
    for name in key.split("."):
        config = getattr(config, name)
    return config


def _replace(config: Any, key: str, value: Any) -> Any:
    head, _, rest = key.partition(".")
    inner = _replace(getattr(config, head), rest, value) if rest else value
    return dataclasses.replace(config, **{head: inner})


def checked_value(setting: Setting, value: Any) -> Any:
    """``value`` in the type of the setting (lists become tuples, ints floats); ConfigError if it
    has another.
    """
    hint = setting.hint
    value = tuple(value) if isinstance(value, list) else value
    if not _fits(value, hint):
        choices = typing.get_args(hint) if typing.get_origin(hint) is typing.Literal else ()
        wanted = " or ".join(map(repr, choices)) or type_name(hint)
        near = nearest(value, choices) if isinstance(value, str) else ""
        raise ConfigError(f"{setting.key} is {value!r}; it must be {wanted}{near}")
    return float(value) if hint is float else value


def _fits(value: Any, hint: Any) -> bool:
    origin = typing.get_origin(hint)
    args = typing.get_args(hint)
    if origin is typing.Literal:
        return value in args
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(v, args[0]) for v in value)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)


def type_name(hint: Any) -> str:
    """A type hint as text for users."""
    if typing.get_origin(hint) is typing.Literal:
        return " | ".join(map(repr, typing.get_args(hint)))
    return str(hint) if typing.get_origin(hint) is tuple else hint.__name__


def provenance(config: Any) -> dict[str, str]:
    """Where each changed setting was set: dotted key -> place. Settings not named have their
    default.
    """
    set_by = dict(getattr(config, "_set_by", {}))
    values = flatten(config)
    for key, setting in present(config).items():
        if key not in set_by and values[key] != setting.default:
            set_by[key] = "where the Config was made"
    return set_by


def _line_of(key: str, file: str, first: int) -> str:
    """``file:line`` of the first line from ``first`` on that names the key; ``first`` itself if
    none does.
    """
    lines = linecache.getlines(file)
    naming = (n for n, text in enumerate(lines[first - 1 :], first) if f'"{key}"' in text)
    return f"{file}:{next(naming, first)}"


def unread(config: Any) -> dict[str, str]:
    """Settings that were set although nothing in this run reads them: dotted key -> why."""
    values = flatten(config)
    out = {key: why for key, (_, why) in getattr(config, "_dropped", {}).items()}
    for key in provenance(config):
        reason = not_read(config, key, values)
        if reason:
            out[key] = reason
    return out


def not_read(config: Any, key: str, values: Mapping[str, Any]) -> str:
    """Why nothing reads the setting ``key`` of ``config``; empty where something does."""
    gate, allowed = _gate(config, key)
    if not gate:
        return ""
    if not (bool(values[gate]) if allowed == NONZERO else values[gate] in allowed):
        wanted = "not 0" if allowed == NONZERO else " or ".join(map(repr, allowed))
        return f"it is read only when {gate} is {wanted}, and {gate} is {values[gate]!r}"
    return not_read(config, gate, values)


def _gate(config: Any, key: str) -> tuple[str, tuple]:
    """The sibling that decides whether the setting is read, and the values that open it."""
    setting = setting_of(config, key)
    if setting is None or "when" not in setting.field.metadata:
        return "", ()
    sibling, allowed = setting.field.metadata["when"]
    return f"{key.rpartition('.')[0]}.{sibling}", allowed


def check_unread(config: Any, command_line: Iterable[str] = ()) -> list[str]:
    """Raise ConfigError for a key that was set and that nothing reads.

    A key of a config file that is not read because of a choice on the command line is returned as a
    note instead: the file is right by itself, and the newer choice made the key moot.
    """
    command_line = set(command_line)
    dropped = getattr(config, "_dropped", {})
    notes = []
    for key, reason in unread(config).items():
        place = dropped[key][0] if key in dropped else provenance(config)[key]
        if key not in command_line and command_line.intersection(_deciding(config, key)):
            notes.append(f"{key} (set at {place}) is not read: {reason}")
        else:
            raise ConfigError(
                f"{key} was set ({place}) but nothing in this run reads it: {reason}; remove it"
            )
    return notes


def _deciding(config: Any, key: str) -> set[str]:
    """The settings that decide whether ``key`` is read."""
    out = {section for s in settings(type(config))[key] for section, _ in s.chosen_by}
    gate, _ = _gate(config, key)
    return out | {gate, *_deciding(config, gate)} if gate else out


def parse_assignments(config: _C, assignments: Iterable[str]) -> _C:
    """``config`` with ``section.key=value`` words applied; ConfigError for an unknown key or a
    value of another type.
    """
    updates = {}
    for word in assignments:
        key, sign, text = word.partition("=")
        if not sign:
            raise ConfigError(f"{word!r} is not an assignment; write section.key=value")
        updates[key] = text if _takes_text(config, key) else _literal(key, text)
    return override(config, updates, "command line")


def _takes_text(config: Any, key: str) -> bool:
    key = next(iter(_today(config, {key: ON}).values), key)
    known = settings(type(config)).get(key, ())
    if not known:
        _refuse_key(config, key, "command line")
    hint = known[0].hint
    return bool(known[0].alternatives) or hint is str or typing.get_origin(hint) is typing.Literal


def _literal(key: str, text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError) as error:
        raise ConfigError(f"{key} is {text!r}, which is not a Python literal") from error
