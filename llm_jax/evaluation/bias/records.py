"""Rows of the files that hold bias sets: jsonl and csv, each with its line for errors."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from llm_jax.types import DataError

_OPTION = re.compile(r"^[A-Z]\.\s*(.+?)\s*$", re.MULTILINE)


class Row(NamedTuple):
    """One record of a file.

    Attributes:
        where: file and line, for errors.
        fields: by name.
    """

    where: str
    fields: Mapping[str, Any]

    def text(self, name: str) -> str:
        """A field that is text and not empty, without white space at its ends.

        Raises:
            DataError: it is missing, empty or something else.
        """
        value = self.fields.get(name)
        if not isinstance(value, str) or not value.strip():
            raise DataError(f"{self.where}: {name} is {value!r}; a text is expected")
        return value.strip()


def lettered_options(text: str) -> tuple[str, ...]:
    """The options of a text with one a line: "A. he"."""
    return tuple(_OPTION.findall(text))


def read_jsonl(path: str | Path) -> Iterator[Row]:
    """Every object of a jsonl file; empty lines are passed over.

    Raises:
        DataError: the file is missing or empty, or a line is no JSON object.
    """
    found = False
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{where} is not valid JSON: {error}") from error
        if not isinstance(value, dict):
            raise DataError(f"{where} is a {type(value).__name__}; a JSON object is expected")
        found = True
        yield Row(where, value)
    if not found:
        raise DataError(f"{path} has no records")


def read_csv(path: str | Path) -> Iterator[Row]:
    """Every record of a csv file with a header.

    Raises:
        DataError: the file is missing or has no records.
    """
    found = False
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""))
    for record in reader:
        found = True
        yield Row(f"{path}:{reader.line_num}", record)
    if not found:
        raise DataError(f"{path} has no records")


def read_json(path: str | Path) -> Any:
    """The value of a JSON file.

    Raises:
        DataError: the file is missing or is not valid JSON.
    """
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise DataError(f"{path} is not valid JSON: {error}") from error


def read_text(path: str | Path) -> str:
    """The text of a file, its line ends as they are.

    Raises:
        DataError: the file is missing or is not UTF-8.
    """
    file = Path(path)
    if not file.is_file():
        raise DataError(f"{file} is not a file; name the file itself")
    try:
        return file.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not valid UTF-8: {error}") from error
