"""Texts beside their references, checked; and the packages that score them."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

from llm_jax.types import ConfigError, DataError


def package(name: str, wanted_by: str) -> Any:
    """A module of the extra ``metrics``, imported where it is used.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        distribution = name.partition(".")[0].replace("_", "-")
        raise ConfigError(
            f"{wanted_by} needs {distribution}, which is not installed;"
            " pip install 'llm_jax[metrics]'"
        ) from error


def check_references(texts: Sequence[str], references: Sequence[Sequence[str]]) -> int:
    """The number of references that each text has.

    Args:
        texts: of a system.
        references: the references of each text.

    Raises:
        DataError: there are no texts; a text is no string; a text has no reference, an empty one or
            another number of them than the first text.
    """
    check_lengths(texts, references)
    expected = len(references[0])
    for at, (text, own) in enumerate(zip(texts, references, strict=True)):
        if not isinstance(text, str):
            raise DataError(
                f"texts[{at}] is {text!r}; it expects a string, and an empty one where the system"
                " said nothing"
            )
        _check_own(at, own)
        if len(own) != expected:
            raise DataError(
                f"references[{at}] has {len(own)} references and references[0] has {expected}; give"
                " every text the same number"
            )
    return expected


def check_lengths(texts: Sequence[Any], references: Sequence[Any], name: str = "texts") -> None:
    """Raises:
    DataError: there are no texts, or there is another number of references.
    """
    if isinstance(texts, str):
        raise DataError(f"{name} is one string; it expects a list of them")
    if not len(texts):
        raise DataError(f"there are no {name} to score")
    if len(texts) != len(references):
        raise DataError(
            f"there are {len(texts)} {name} and {len(references)} references; each of them needs"
            " its own"
        )


def _check_own(at: int, own: Sequence[str]) -> None:
    if isinstance(own, str):
        raise DataError(
            f"references[{at}] is one string; it expects the list of the references of a text"
        )
    if not len(own):
        raise DataError(f"references[{at}] is empty; a text without a reference has no score")
    for number, reference in enumerate(own):
        if not isinstance(reference, str) or not reference.strip():
            raise DataError(
                f"references[{at}][{number}] is {reference!r}; it expects a text that is not empty:"
                " leave out what has no reference"
            )
