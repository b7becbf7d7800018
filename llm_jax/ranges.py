"""Ranges of numeric settings, declared with the field or the parameter:

    learning_rate: Positive = 3e-4
    seq_length: tuple[Count, ...] = (256, 2048)

``check_fields`` checks a config dataclass, and ``checked`` the arguments of a function. NaN and
infinity are in no range.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import numbers
import typing
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple, TypeVar

from llm_jax.types import ConfigError

_F = TypeVar("_F", bound=Callable[..., Any])


class Range(NamedTuple):
    """Numbers from ``low`` to ``high``; an open bound is excluded."""

    low: float
    high: float = math.inf
    low_open: bool = False
    high_open: bool = False

    def holds(self, value: float) -> bool:
        """Whether the value is in the range."""
        above = value > self.low if self.low_open else value >= self.low
        below = value < self.high if self.high_open else value <= self.high
        return above and below and _is_finite(value)

    def expected(self, value: float) -> str:
        """The range as text after "it must be", for a user who gave ``value``."""
        least = f"more than {self.low}" if self.low_open else f"at least {self.low}"
        most = f"less than {self.high}" if self.high_open else f"at most {self.high}"
        if not _is_finite(value):
            return "finite" if self.low == -math.inf else f"finite and {least}"
        # A bound that comes from the integer type is named only to those who exceed it.
        if self.high >= _LARGEST and value < self.high:
            return least
        return f"{least} and {most}"


def _is_finite(value: float) -> bool:
    # math.isfinite converts to float, and some integers are too large for one.
    return isinstance(value, numbers.Integral) or math.isfinite(value)


# Counts enter compiled programs as int32, which wraps around silently.
_LARGEST = 2**31 - 1
Count = Annotated[int, Range(1, _LARGEST)]
Natural = Annotated[int, Range(0, _LARGEST)]
Large = Annotated[int, Range(0, 2**63 - 1)]
"""A number of bytes or tokens that enters no compiled program."""
Bytes = Annotated[int, Range(1, 2**63 - 1)]
Seed = Annotated[int, Range(0, 2**64 - 1)]
Finite = Annotated[float, Range(-math.inf)]
Positive = Annotated[float, Range(0, low_open=True)]
NotNegative = Annotated[float, Range(0)]
Share = Annotated[float, Range(0, 1)]
ShareBelowOne = Annotated[float, Range(0, 1, high_open=True)]
PositiveShare = Annotated[float, Range(0, 1, low_open=True)]
InnerShare = Annotated[float, Range(0, 1, low_open=True, high_open=True)]


def range_of(hint: Any) -> Range | None:
    """The range that a type hint declares; None where it declares none.

    Ranges inside of ``X | None`` and ``tuple[X, ...]`` are found too.
    """
    if typing.get_origin(hint) is Annotated:
        declared = [extra for extra in hint.__metadata__ if isinstance(extra, Range)]
        if declared:
            return declared[0]
    inner = (range_of(argument) for argument in typing.get_args(hint))
    return next((found for found in inner if found is not None), None)


def check_value(name: str, value: Any, hint: Any) -> None:
    """Checks a value against the range of its type hint.

    Raises:
        ConfigError: a number is out of range; the message names the setting, its value and the
            range.
    """
    declared = range_of(hint)
    if declared is None or (value is None and type(None) in typing.get_args(hint)):
        return
    whole = _is_whole(hint)
    for number in value if isinstance(value, tuple | list) else (value,):
        kind = numbers.Integral if whole else numbers.Real
        if not isinstance(number, kind) or isinstance(number, bool):
            wanted = "a whole number" if whole else "a number"
            raise ConfigError(f"{name} is {value!r}; it must be {wanted}")
        exact: Any = number if whole else _as_float(number)
        if not declared.holds(exact):
            raise ConfigError(f"{name} is {_shown(value)}; it must be {declared.expected(exact)}")


def _as_float(number: Any) -> float:
    try:
        return float(number)
    except OverflowError:
        return math.inf


def _shown(value: Any) -> str:
    try:
        return str(value)[:80]
    except ValueError:
        return "a number of thousands of digits"


def _is_whole(hint: Any) -> bool:
    """Whether a hint is int, or a tuple or union with int."""
    return hint is int or any(map(_is_whole, typing.get_args(hint)))


def check_fields(section: Any, prefix: str = "") -> None:
    """Calls ``check_value`` for every field of a config dataclass and of the dataclasses in it."""
    for name, hint in hints_of(section.__class__).items():
        value = getattr(section, name)
        if dataclasses.is_dataclass(value):
            check_fields(value, f"{prefix}{name}.")
        else:
            check_value(prefix + name, value, hint)


@functools.cache
def hints_of(owner: Any) -> dict[str, Any]:
    """The type hints of a dataclass or a function, with their ranges."""
    return typing.get_type_hints(owner, include_extras=True)


def checked(function: _F) -> _F:
    """Decorates a function so that every call checks its arguments against their ranges.

    Raises:
        ConfigError: by the function, for an argument that is out of range.
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        hints = hints_of(function)
        for name, value in signature.bind(*args, **kwargs).arguments.items():
            if name in hints:
                check_value(name, value, hints[name])
        return function(*args, **kwargs)

    return typing.cast(_F, call)
