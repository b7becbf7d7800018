"""Files of answers that a stopped command goes on with.

``answers.jsonl.partial`` takes answers as they come, and becomes ``answers.jsonl``, in the order of
the prompts, when all are there. ``answers.jsonl.settings.json`` says what they were asked for.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from llm_jax.commands.written import json_line
from llm_jax.files import write_atomic, write_json
from llm_jax.types import ConfigError, DataError

Records = list[dict[str, Any]]


class AnswerFile(NamedTuple):
    """Answers that are being written.

    Attributes:
        out: the file that all of them become.
        prompts: number of prompts.
        samples: answers of each.
    """

    out: Path
    prompts: int
    samples: int

    @property
    def partial(self) -> Path:
        """The answers so far."""
        return self.out.with_name(f"{self.out.name}.partial")

    @property
    def settings(self) -> Path:
        """What they were asked for."""
        return self.out.with_name(f"{self.out.name}.settings.json")

    def check_settings(self, asked: Mapping[str, Any]) -> None:
        """Keeps what is asked for; raises ConfigError where answers to something else are there."""
        asked = json.loads(json.dumps(asked))
        if not self.settings.exists():
            for path in (self.out, self.partial):
                if path.exists():
                    raise ConfigError(
                        f"{path} exists, without {self.settings.name} to say what it was asked for;"
                        " give another out (--out), or delete it"
                    )
            write_json(self.settings, asked)
            return
        before = _read_object(self.settings)
        for name in {**before, **asked}:
            if before.get(name) != asked.get(name):
                raise ConfigError(
                    f"{name} is {asked.get(name)!r}, and {self.out} was begun with"
                    f" {before.get(name)!r}; give the same again, or another out (--out)"
                )

    @property
    def is_whole(self) -> bool:
        """Whether all answers are there."""
        return self.out.exists()

    def done(self) -> set[int]:
        """Numbers of the prompts that are answered; what a killed command left half is dropped."""
        found = self._by_prompt()
        kept = [record for records in found.values() for record in records]
        write_atomic(self.partial, "".join(map(json_line, kept)).encode())
        return set(found)

    def append(self, records: Records) -> None:
        """Adds whole answers, on disk when it returns."""
        data = "".join(map(json_line, records)).encode()
        with self.partial.open("ab") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    def finish(self) -> None:
        """Makes the file of all answers, in the order of the prompts."""
        found = self._by_prompt()
        ordered = [record for number in range(self.prompts) for record in found[number]]
        write_atomic(self.out, "".join(map(json_line, ordered)).encode())
        self.partial.unlink()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Raises ConfigError where another process writes the same answers."""
        with self.settings.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise ConfigError(
                    f"another process writes {self.out}; wait for it, or give another out (--out)"
                ) from None
            yield

    def _by_prompt(self) -> dict[int, Records]:
        """The prompts of which all answers are there."""
        found: dict[int, Records] = {}
        content = self.partial.read_bytes() if self.partial.exists() else b""
        # What follows the last line feed was cut off.
        for line in content.split(b"\n")[:-1]:
            try:
                record = json.loads(line)
                found.setdefault(record["prompt"], []).append(record)
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(
                    f"{self.partial} has the line {line[:60]!r}, which is no answer; delete the"
                    " file to begin again"
                ) from error
        return {n: records for n, records in found.items() if len(records) == self.samples}


def _read_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except ValueError as error:
        raise DataError(f"{path} is not valid JSON ({error}); delete it to begin again") from error
    if not isinstance(value, dict):
        raise DataError(f"{path} is no JSON object; delete it to begin again")
    return value
