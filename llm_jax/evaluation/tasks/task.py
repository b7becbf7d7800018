"""What a task is: a reader of its file, a prompt, and how an answer counts."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from llm_jax.evaluation.bias.records import Row, read_jsonl, read_text
from llm_jax.types import ConfigError, DataError

Kind = Literal["choices", "exact", "generation", "perplexity"]
Invalid = Literal["refuse", "skip"]


@dataclass(frozen=True)
class Item:
    """One record of a task's file.

    Attributes:
        where: file and line.
        fields: texts that the template shows, by name.
        choices: the answers to choose from.
        gold: number of the right choice.
        references: right answers that a written one is compared with.
        texts: what the choices stand for, where they are letters.
    """

    where: str
    fields: Mapping[str, str]
    choices: tuple[str, ...] = ()
    gold: int = -1
    references: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()

    @property
    def answer(self) -> str:
        """The right answer, as an example shows it."""
        return self.choices[self.gold] if self.choices else self.references[0]


@dataclass(frozen=True)
class Task:
    """A task.

    Attributes:
        name: of the task.
        kind: ``choices`` compares the likelihoods of answers, ``exact`` a written answer with the
            right ones, ``generation`` a written text by ROUGE; ``perplexity`` scores whole texts.
        read: makes an item of a record; raises DataError for a field that is missing.
        template: of the prompt, with names of fields in braces.
        delimiter: between a prompt and its answer.
        answer_prefix: what the likelihood of a choice by itself is measured after; by default the
            last line of the template, if it has no field.
        separator: between examples and the question.
        stop: texts that end a written answer.
        max_new_tokens: of a written answer.
        file: where the file lies in a folder of data sets, for ``find_file``.
    """

    name: str
    kind: Kind
    read: Callable[[Row], Item] = field(repr=False)
    template: str = ""
    delimiter: str = " "
    answer_prefix: str = "Answer:"
    separator: str = "\n\n"
    stop: tuple[str, ...] = ("\n",)
    max_new_tokens: int = 32
    file: str = ""

    def prompt(self, item: Item) -> str:
        """What comes before the answer."""
        return self.template.format_map(item.fields)

    def example(self, item: Item) -> str:
        """The prompt with the right answer."""
        return self.prompt(item) + self.delimiter + item.answer


class LoadedTask(NamedTuple):
    """A task with its file.

    Attributes:
        task: the task.
        file: that was read.
        sha256: of the file.
        items: of the file.
        invalid: why records are left out.
    """

    task: Task
    file: Path
    sha256: str
    items: tuple[Item, ...]
    invalid: tuple[str, ...] = ()


def load_task(task: Task, file: Path, invalid: Invalid = "refuse") -> LoadedTask:
    """Reads the file of a task.

    Args:
        task: the task.
        file: its file.
        invalid: ``skip`` leaves out records that cannot be read, and keeps why.

    Raises:
        DataError: the file is missing or empty, or a record lacks a field; names the line.
    """
    if file.suffix == ".txt":
        rows = [Row(f"{file}:1", {"text": read_text(file)})]
    else:
        rows = list(read_jsonl(file))
    items: list[Item] = []
    problems: list[str] = []
    for row in rows:
        try:
            items.append(task.read(row))
        except DataError as error:
            if invalid == "refuse":
                raise DataError(
                    f"{error}; fix the record, or leave such records out: invalid (--invalid skip)"
                ) from error
            problems.append(str(error))
    if not items:
        raise DataError(f"{file} has no record that can be read: {problems[0]}")
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    return LoadedTask(task, file, sha256, tuple(items), tuple(problems))


def find_file(task: Task, folder: Path | None) -> Path:
    """The file of a task in a folder of data sets, however deep it lies there.

    Raises:
        ConfigError: there is no folder; the file is not there, or more than once.
    """
    if folder is None:
        raise ConfigError(
            f"task {task.name} reads {task.file}; give the folder that has it in files (--files),"
            f" or name a file: {task.name}=FILE"
        )
    found = sorted(folder.glob(f"**/{task.file}"))
    if not found:
        raise ConfigError(
            f"task {task.name}: {folder} has no file {task.file}; name the file: {task.name}=FILE"
        )
    if len(found) > 1:
        raise ConfigError(
            f"task {task.name}: {folder} has {task.file} {len(found)} times, such as {found[0]} and"
            f" {found[1]}; name the file: {task.name}=FILE"
        )
    return found[0]


def check_gold(row: Row, gold: int, choices: tuple[str, ...]) -> int:
    """Raises DataError unless there are two choices, all different, and ``gold`` is one of them."""
    if len(choices) < 2:
        raise DataError(f"{row.where} has {len(choices)} choices; at least two are expected")
    if len(set(choices)) != len(choices):
        raise DataError(f"{row.where} has the same choice twice: {choices}")
    if not 0 <= gold < len(choices):
        raise DataError(
            f"{row.where}: the answer is number {gold} of {len(choices)} choices; from 0 on is"
            " expected"
        )
    return gold
