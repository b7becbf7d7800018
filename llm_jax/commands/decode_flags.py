"""The settings of decoding as options of a verb, made of the fields of ``DecodeConfig``."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from llm_jax.config.decode import DecodeSetting, Phrase, decode_settings
from llm_jax.config.explain import help_of_field
from llm_jax.ranges import hints_of

_F = TypeVar("_F", bound=Callable[..., Any])


def with_decode_flags(function: _F) -> _F:
    """A function with an argument for each setting of decoding in place of its ``**settings``.

    Its signature, its type hints and the ``Args`` of its docstring have them, after its own.

    Args:
        function: whose last argument is ``**settings``, and whose docstring ends with ``Args``.
    """
    signature = inspect.signature(function)
    own = list(signature.parameters.values())[:-1]
    hints = {name: hint for name, hint in hints_of(function).items() if name != "settings"}
    known = decode_settings()
    flags = [_parameter(name, setting) for name, setting in known.items()]
    helps = [f"    {name}: {flag_help(setting)}" for name, setting in known.items()]

    def call(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    # Not functools.wraps: the function that it names has another signature.
    call.__name__ = function.__name__
    call.__qualname__ = function.__qualname__
    call.__module__ = function.__module__
    call.__doc__ = "\n".join([inspect.getdoc(function) or "", *helps])
    call.__annotations__ = {**hints, **{flag.name: flag.annotation for flag in flags}}
    typing.cast(Any, call).__signature__ = signature.replace(
        parameters=[p.replace(annotation=hints[p.name]) for p in own] + flags
    )
    return typing.cast(_F, call)


def changed_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that are not at their default."""
    known = decode_settings()
    return {
        name: value
        for name, value in settings.items()
        if name not in known or value != known[name].field.default
    }


def flag_help(setting: DecodeSetting) -> str:
    """The help of a setting's option."""
    return help_of_field(setting.owner, setting.field.name)


def flag_hint(setting: DecodeSetting) -> Any:
    """The type of a setting's option: that of the field, with texts alone for phrases."""
    return _with_texts(hints_of(setting.owner)[setting.field.name])


def _parameter(name: str, setting: DecodeSetting) -> inspect.Parameter:
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=setting.field.default,
        annotation=flag_hint(setting),
    )


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
