"""A file of answers that a stopped evaluation goes on with.

The first line has what was asked, each other line one answer. A line is on disk before the next
questions are asked; what a kill leaves half written is dropped.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from llm_jax.types import ConfigError, DataError

Record = dict[str, Any]


class AnswerFile:
    """Answers of one task that are being written.

    Args:
        path: the file.
        file: it, open and locked.
        records: of the answers that are there, by number of the item.
    """

    def __init__(self, path: Path, file: BinaryIO, records: dict[int, Record]) -> None:
        self.path = path
        self._file = file
        self._records = records

    @property
    def records(self) -> list[Record]:
        """The answers so far, in the order of the items."""
        return [self._records[number] for number in sorted(self._records)]

    def has(self, number: int) -> bool:
        """Whether an item is answered."""
        return number in self._records

    def append(self, records: Sequence[Record]) -> None:
        """Adds answers, on disk when it returns."""
        _write(self._file, records)
        self._records |= {record["item"]: record for record in records}


@contextmanager
def open_answers(path: Path, settings: Mapping[str, Any]) -> Iterator[AnswerFile]:
    """The answers of a task, to go on with.

    Args:
        path: the file, which need not exist.
        settings: what is asked.

    Raises:
        ConfigError: the answers there are to something else, which the message names; or another
            process writes them.
        DataError: the file is damaged.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(
                f"another process writes {path}; wait for it, or give another out (--out)"
            ) from None
        lines = _whole_lines(file)
        if lines:
            _check_settings(path, lines[0], settings)
        else:
            _write(file, [{"settings": dict(settings)}])
        records = {record["item"]: record for record in _answers(path, lines[1:])}
        yield AnswerFile(path, file, records)


def read_answers(path: Path) -> list[Record]:
    """The answers of a file, in the order of the items.

    Raises:
        DataError: the file is missing or damaged.
    """
    if not path.is_file():
        raise DataError(f"{path} is missing; run the evaluation again")
    lines = path.read_bytes().split(b"\n")[:-1]
    return sorted(_answers(path, lines[1:]), key=lambda record: record["item"])


def _whole_lines(file: BinaryIO) -> list[bytes]:
    """The lines of a file, which loses what follows its last line feed."""
    file.seek(0)
    content = file.read()
    end = content.rfind(b"\n") + 1
    file.truncate(end)
    return content[:end].split(b"\n")[:-1]


def _answers(path: Path, lines: Sequence[bytes]) -> list[Record]:
    found = []
    for number, line in enumerate(lines, 2):
        record = _parsed(path, number, line)
        if not isinstance(record.get("item"), int):
            raise DataError(f"{path}:{number} is no answer; delete the file to begin again")
        found.append(record)
    return found


def _check_settings(path: Path, line: bytes, settings: Mapping[str, Any]) -> None:
    asked = json.loads(json.dumps(dict(settings)))
    before = _parsed(path, 1, line).get("settings", {})
    for name in {**before, **asked}:
        if before.get(name) != asked.get(name):
            raise ConfigError(
                f"{name} is {asked.get(name)!r}, and the answers in {path} were asked for with"
                f" {before.get(name)!r}; give the same again, or another out (--out)"
            )


def _parsed(path: Path, number: int, line: bytes) -> Record:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise DataError(
            f"{path}:{number} is not valid JSON ({error}); delete the file to begin again"
        ) from error
    if not isinstance(value, dict):
        raise DataError(f"{path}:{number} is no JSON object; delete the file to begin again")
    return value


def _write(file: BinaryIO, records: Sequence[Record]) -> None:
    lines = [json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n" for record in records]
    file.write("".join(lines).encode())
    file.flush()
    os.fsync(file.fileno())
