"""What files of this package have in common: JSON of a version, and rules of words in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from llm_jax.classic.words import WordRule
from llm_jax.storage.paths import path_of
from llm_jax.types import DataError


def read_json(path: str | Path) -> Any:
    """The value of a JSON file.

    Raises:
        DataError: the file cannot be read, or is not JSON.
    """
    path = path_of(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{str(path)!r} cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{str(path)!r} is not valid JSON ({str(error)[:100]})") from error


def check_format(value: Any, where: str, what: str, version: int, keys: set[str]) -> None:
    """Checks the keys of a saved object, and its ``format_version``.

    Raises:
        DataError: it is another object, or of another version.
    """
    if not isinstance(value, dict) or value.keys() != keys | {"format_version"}:
        raise DataError(f"{where!r} is not {what}; it must have the keys {', '.join(sorted(keys))}")
    if value["format_version"] != version:
        raise DataError(
            f"{where!r} has the format {value['format_version']!r}; this version reads {version}"
        )


def rule_from_json(value: Any) -> WordRule:
    """The rule that ``dataclasses.asdict`` made ``value`` of.

    Raises:
        ConfigError: a setting that cannot be honoured.
        TypeError, ValueError: ``value`` is not such a dict.
    """
    fields = dict(value)
    fields["stop_words"] = strings(fields.get("stop_words"))
    fields["ngrams"] = tuple(fields.get("ngrams", ()))
    return WordRule(**fields)


def strings(value: Any) -> tuple[str, ...]:
    """A list of strings as a tuple.

    Raises:
        TypeError: ``value`` is something else.
    """
    if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
        raise TypeError(f"{str(value)[:50]!r} is not a list of words")
    return tuple(value)
