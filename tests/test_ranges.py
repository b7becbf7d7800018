"""Every number that a user can set has a range, declared with it; what is outside is refused by
name.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import math
import re
import typing
from typing import Annotated

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_jax.cli import VERBS
from llm_jax.config import Config, DecodeConfig
from llm_jax.ranges import (
    Count,
    Natural,
    PositiveShare,
    Range,
    check_fields,
    check_value,
    checked,
    hints_of,
    range_of,
)
from llm_jax.types import ConfigError


def is_number(hint: object) -> bool:
    """Whether a hint is of numbers: int, float, tuples of them, or one of them or None."""
    if typing.get_origin(hint) is Annotated:
        return is_number(typing.get_args(hint)[0])
    return hint in (int, float) or any(map(is_number, typing.get_args(hint)))


# Numbers beside texts, whose pairs and token ids decode/test_rows checks.
MIXED = ("logit_bias", "sequence_bias", "bad_words", "negative_prompt")


def settings(owner: type, prefix: str = ""):
    for field in dataclasses.fields(owner):
        if dataclasses.is_dataclass(field.default):
            yield from settings(type(field.default), f"{prefix}{field.name}.")
        elif field.name not in MIXED and is_number(hint := hints_of(owner)[field.name]):
            yield prefix + field.name, hint


SETTINGS = dict(settings(Config)) | dict(settings(DecodeConfig, "decode."))


def parameters():
    for verb, entry in VERBS.items():
        if entry.raw:
            continue
        module, _, name = entry.target.partition(":")
        function = getattr(importlib.import_module(f"llm_jax.{module}"), name)
        for parameter, hint in hints_of(inspect.unwrap(function)).items():
            if parameter not in ("return", *MIXED) and is_number(hint):
                yield verb, function, parameter, hint


PARAMETERS = list(parameters())


def test_every_number_declares_its_range():
    unsaid = [name for name, hint in SETTINGS.items() if range_of(hint) is None]
    unsaid += [f"{verb} {name}" for verb, _, name, hint in PARAMETERS if range_of(hint) is None]
    assert not unsaid


def test_every_default_is_in_its_range():
    check_fields(Config())
    check_fields(DecodeConfig())
    for _, function, name, hint in PARAMETERS:
        default = inspect.signature(function).parameters[name].default
        if default is not inspect.Parameter.empty:
            check_value(name, default, hint)


@pytest.mark.parametrize(
    "verb, function, name, hint", PARAMETERS, ids=lambda x: x if isinstance(x, str) else ""
)
def test_every_verb_refuses_a_number_out_of_range_before_it_does_anything(
    verb, function, name, hint
):
    declared = range_of(hint)
    required = [
        p.name
        for p in inspect.signature(function).parameters.values()
        if p.default is inspect.Parameter.empty
    ]
    others = {n: "/nowhere/at/all" for n in required if n != name}
    for bad in (declared.low - 1, math.nan, declared.high + 1, 10**400, -(10**400)):
        if declared.holds(bad) or bad in (math.inf, -math.inf):
            continue
        value = (bad,) if typing.get_origin(hint) is tuple else bad
        with pytest.raises(
            ConfigError, match=rf"^{name} is {re.escape(str(value)[:80])}; it must be "
        ):
            function(**others, **{name: value})


def test_what_is_said():
    for hint, value, said in [
        (Count, 0, "it must be at least 1"),
        (Count, 2**31, "it must be at least 1 and at most 2147483647"),
        (Natural, -1, "it must be at least 0"),
        (PositiveShare, 0.0, "it must be more than 0 and at most 1"),
        (PositiveShare, math.nan, "it must be finite and more than 0"),
    ]:
        with pytest.raises(ConfigError) as caught:
            check_value("x", value, hint)
        assert str(caught.value) == f"x is {value}; {said}"


@given(st.floats(allow_nan=True), st.booleans(), st.booleans())
def test_a_range_holds_what_lies_between_its_bounds(value, low_open, high_open):
    declared = Range(0, 1, low_open, high_open)
    inside = 0 < value < 1 or (value == 0 and not low_open) or (value == 1 and not high_open)
    assert declared.holds(value) == inside


def test_tuples_and_none():
    check_value("x", None, Natural | None)
    check_value("x", (), tuple[Count, ...])
    with pytest.raises(ConfigError, match=re.escape("x is (1, 0); it must be at least 1")):
        check_value("x", (1, 0), tuple[Count, ...])


def test_a_checked_function_checks_positional_arguments_too():
    @checked
    def f(a: Count, b: Natural = 0) -> int:
        return a + b

    assert f(1) == 1 and f(2, b=3) == 5
    with pytest.raises(ConfigError, match="a is 0"):
        f(0)
    with pytest.raises(ConfigError, match="b is -1"):
        f(1, -1)
