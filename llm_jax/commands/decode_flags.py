"""The settings of decoding as options of a verb, made of the fields of ``DecodeConfig`` and of
``BeamConfig``.
"""

from __future__ import annotations

import dataclasses
import inspect
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from llm_jax.config.decode import Phrase, decode_settings
from llm_jax.config.explain import help_of_field
from llm_jax.config.search import BeamConfig, validate_beams
from llm_jax.ranges import Count, hints_of
from llm_jax.types import ConfigError

_F = TypeVar("_F", bound=Callable[..., Any])


class Flag(NamedTuple):
    """An option.

    Attributes:
        name: of the argument.
        hint: its type.
        default: its value where it is not given.
        help: what it does.
    """

    name: str
    hint: Any
    default: Any
    help: str


class Search(NamedTuple):
    """A beam search that a command line asks for.

    Attributes:
        beams: its settings.
        required: texts that every text must have.
    """

    beams: BeamConfig
    required: tuple[str, ...]


def with_flags(*flags: Flag) -> Callable[[_F], _F]:
    """Gives a function an argument for each flag in place of its ``**settings``.

    Its signature, its type hints and the ``Args`` with which its docstring ends have them, after
    its own.
    """

    def decorate(function: _F) -> _F:
        return _decorated(function, flags)

    return decorate


def decode_flags() -> list[Flag]:
    """An option for each setting of decoding."""
    return [
        Flag(
            name=name,
            hint=_with_texts(hints_of(setting.owner)[setting.field.name]),
            default=setting.field.default,
            help=help_of_field(setting.owner, name),
        )
        for name, setting in decode_settings().items()
    ]


def beam_flags() -> list[Flag]:
    """An option for each setting of beam search. Without ``beams`` there is none."""
    found = []
    for field in dataclasses.fields(BeamConfig):
        hint = hints_of(BeamConfig)[field.name]
        default = field.default
        if field.name == "beams":
            hint = Count | None
            default = None
        if field.name == "required":
            hint = tuple[str, ...]
        meaning = help_of_field(BeamConfig, field.name)
        if field.name == "required":
            meaning = "Texts that every text must contain, with or without a blank before them."
        found.append(Flag(beam_name(field.name), hint, default, meaning))
    return found


def search_of(settings: dict[str, Any]) -> Search | None:
    """Takes the settings of beam search out of all settings; None where it is not asked for.

    Raises:
        ConfigError: some are set and ``beams`` is not, or they cannot be.
    """
    given = {
        flag.name.removeprefix("beam_"): settings.pop(flag.name, flag.default)
        for flag in beam_flags()
    }
    required = given.pop("required")
    if given["beams"] is None:
        default = BeamConfig()
        changed = [name for name, value in given.items() if value != getattr(default, name)]
        changed = [name for name in (*changed, *["required"] * bool(required)) if name != "beams"]
        if changed:
            flag = beam_name(changed[0]).replace("_", "-")
            raise ConfigError(
                f"--{flag} is set and beams (--beams) is not, without which there is no beam"
                " search; set --beams, or leave it out"
            )
        return None
    beams = BeamConfig(**given)
    validate_beams(beams)
    return Search(beams, required)


def changed_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that are not at their default."""
    known = decode_settings()
    return {name: value for name, value in settings.items() if value != known[name].field.default}


def beam_name(name: str) -> str:
    """The argument of a setting of beam search."""
    return name if name == "beams" else f"beam_{name}"


def _decorated(function: _F, flags: Sequence[Flag]) -> _F:
    signature = inspect.signature(function)
    own = list(signature.parameters.values())[:-1]
    hints = {name: hint for name, hint in hints_of(function).items() if name != "settings"}
    helps = [f"    {flag.name}: {flag.help}" for flag in flags]

    def call(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    # Not functools.wraps: the function that it names has another signature.
    call.__name__ = function.__name__
    call.__qualname__ = function.__qualname__
    call.__module__ = function.__module__
    call.__doc__ = "\n".join([inspect.getdoc(function) or "", *helps])
    call.__annotations__ = {**hints, **{flag.name: flag.hint for flag in flags}}
    typing.cast(Any, call).__signature__ = signature.replace(
        parameters=[p.replace(annotation=hints[p.name]) for p in own] + list(map(_parameter, flags))
    )
    return typing.cast(_F, call)


def _parameter(flag: Flag) -> inspect.Parameter:
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(flag.name, kind, default=flag.default, annotation=flag.hint)


def _with_texts(hint: Any) -> Any:
    """A type hint with ``str`` in place of ``Phrase``: a command line has no other phrases."""
    if hint == Phrase:
        return str
    origin = typing.get_origin(hint)
    arguments = typing.get_args(hint)
    if origin is tuple:
        return tuple[tuple(_with_texts(each) for each in arguments)]  # type: ignore[misc]
    if origin in (typing.Union, types.UnionType):
        return typing.Union[tuple(_with_texts(each) for each in arguments)]  # noqa: UP007
    return hint
