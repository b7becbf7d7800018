"""Sections of a config: alternatives are dataclasses with a name each, of which a section is one.

    positions: RopeConfig | LearnedPositionsConfig | None = RopeConfig()

The dotted key of such a section, ``model.positions``, has the name (``kind``) of the alternative as
its value: ``rope``, ``learned``, or ``none`` for None. A section that is there or not
(``EncoderConfig | None``) is ``on`` or ``none``.
"""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Iterator
from typing import Any, NamedTuple

NONE = "none"
ON = "on"
NONZERO = ("<non-zero>",)


def read_when(default: Any, sibling: str, values: tuple) -> Any:
    """A field that is read only when ``sibling`` (of the same section) is one of ``values``."""
    return dataclasses.field(default=default, metadata={"when": (sibling, values)})


class Setting(NamedTuple):
    """A field of a section, or a section with alternatives.

    Attributes:
        key: Dotted key.
        owner: The dataclass that has the field.
        field: The field.
        alternatives: Of a section: the dataclasses by their names; None has the name ``none``.
            Empty for a field that is no section.
        chosen_by: (key of a section, name of its alternative) for every section with alternatives
            on the way to the field, the outermost first.
    """

    key: str
    owner: type
    field: dataclasses.Field
    alternatives: dict[str, type | None]
    chosen_by: tuple[tuple[str, str], ...]

    @property
    def default(self) -> Any:
        """The default: a value, or the name of an alternative."""
        value = self.field.default
        return kind_of(value) if self.alternatives else value

    @property
    def hint(self) -> Any:
        """The type hint, without the range of a number."""
        return _plain_hints(self.owner)[self.field.name]


def kind_of(section: Any) -> str:
    """The name of the alternative that ``section`` is."""
    if section is None:
        return NONE
    return getattr(section, "kind", ON)


def alternatives(owner: type, name: str) -> dict[str, type | None]:
    """The dataclasses that the field ``name`` of ``owner`` can be, by their names; empty where it
    is one dataclass alone or no section.
    """
    return _alternatives(owner, name)


@functools.cache
def _alternatives(owner: type, name: str) -> dict[str, type | None]:
    hint = _plain_hints(owner)[name]
    if typing.get_origin(hint) not in (typing.Union, types.UnionType):
        return {}
    out: dict[str, type | None] = {}
    for choice in typing.get_args(hint):
        if choice is type(None):
            out[NONE] = None
        elif isinstance(choice, type) and dataclasses.is_dataclass(choice):
            out[getattr(choice, "kind", ON)] = choice
    return out


@functools.cache
def _plain_hints(owner: type) -> dict[str, Any]:
    return typing.get_type_hints(owner)


def settings(root: type) -> dict[str, tuple[Setting, ...]]:
    """Every dotted key of the config ``root`` and its settings: several where alternatives of one
    section have a field of that name.
    """
    return _settings(root)


@functools.cache
def _settings(root: type) -> dict[str, tuple[Setting, ...]]:
    out: dict[str, list[Setting]] = {}
    for setting in _walk(root, "", ()):
        out.setdefault(setting.key, []).append(setting)
    return {key: tuple(found) for key, found in out.items()}


def _walk(owner: type, prefix: str, chosen_by: tuple[tuple[str, str], ...]) -> Iterator[Setting]:
    for field in dataclasses.fields(owner):
        key = prefix + field.name
        choices = alternatives(owner, field.name)
        if dataclasses.is_dataclass(_plain_hints(owner)[field.name]):
            yield from _walk(_plain_hints(owner)[field.name], f"{key}.", chosen_by)
            continue
        yield Setting(key, owner, field, choices, chosen_by)
        for name, choice in choices.items():
            if choice is not None:
                yield from _walk(choice, f"{key}.", (*chosen_by, (key, name)))


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """All settings of a config under dotted keys, in order of definition.

    A section with alternatives has the name of the one that it is, before its fields.
    """
    out: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        key = prefix + field.name
        value = getattr(config, field.name)
        if alternatives(type(config), field.name):
            out[key] = kind_of(value)
            out |= {} if value is None else flatten(value, f"{key}.")
        elif dataclasses.is_dataclass(value):
            out |= flatten(value, f"{key}.")
        else:
            out[key] = value
    return out


def present(config: Any) -> dict[str, Setting]:
    """The settings that ``config`` has, of the alternatives that its sections are."""
    values = flatten(config)
    known = settings(type(config))
    return {key: _of_chosen(known[key], values) for key in values}


def _of_chosen(found: tuple[Setting, ...], values: dict[str, Any]) -> Setting:
    for setting in found:
        if all(values.get(section) == name for section, name in setting.chosen_by):
            return setting
    raise AssertionError(found)


def setting_of(config: Any, key: str) -> Setting | None:
    """The setting ``key`` of ``config``; None where its sections are alternatives without it."""
    return present(config).get(key)


def value_of(config: Any, key: str) -> Any:
    """The value of a dotted key: of a section with alternatives the name of the one it is; None
    where a section on the way is another alternative, or is not there.
    """
    return flatten(config).get(key)
