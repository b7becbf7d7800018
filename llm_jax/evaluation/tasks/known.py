"""The tasks by name, and files of the user's as tasks."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from llm_jax.evaluation.bias.records import Row, read_jsonl
from llm_jax.evaluation.tasks import readers
from llm_jax.evaluation.tasks.task import Invalid, LoadedTask, Task, find_file, load_task
from llm_jax.types import ConfigError, DataError

QUESTION = "Question: {question}\nAnswer:"

TASKS = {
    task.name: task
    for task in (
        Task(
            "mmlu",
            "choices",
            readers.read_lettered,
            "{question}\n{options}\nAnswer:",
            file="MMLU/test.jsonl",
        ),
        Task("piqa", "choices", readers.read_options, QUESTION, file="PIQA/validation.jsonl"),
        Task(
            "boolq",
            "choices",
            readers.read_boolq,
            "{passage}\nQuestion: {question}?\nAnswer:",
            file="BoolQ/dev.jsonl",
        ),
        Task(
            "openbookqa",
            "choices",
            readers.read_options,
            "{question}",
            answer_prefix="Answer:",
            file="OpenBookQA/test.jsonl",
        ),
        Task(
            "commonsenseqa",
            "choices",
            readers.read_lettered,
            "Question: {question}\n{options}\nAnswer:",
            file="CommonsenseQA/validation.jsonl",
        ),
        Task(
            "truthfulqa",
            "choices",
            readers.read_truthfulqa,
            "Q: {question}\nA:",
            answer_prefix="A:",
            file="TruthfulQA/combined.jsonl",
        ),
        Task(
            "truthfulqa_gen",
            "exact",
            readers.read_right_answers,
            "Q: {question}\nA:",
            file="TruthfulQA/combined.jsonl",
        ),
        Task(
            "xsum",
            "generation",
            readers.read_summary,
            "Document: {document}\nSummary in one sentence:",
            max_new_tokens=64,
            file="XSum/test.jsonl",
        ),
    )
}
_OF_FIELDS = {
    "choices": Task("", "choices", readers.read_choices, QUESTION),
    "answer": Task("", "exact", readers.read_references, QUESTION),
    "summary": replace(TASKS["xsum"], name="", file=""),
    "text": Task("", "perplexity", readers.read_document),
}


def load_tasks(
    wanted: Sequence[str], folder: Path | None, invalid: Invalid = "refuse"
) -> list[LoadedTask]:
    """Tasks by name, as ``NAME=FILE``, or as a file of the user's.

    A file's task is named like the file. A .txt file is one text to score; the fields of a .jsonl
    file say what it is for: ``choices`` (with question and answer), ``answer`` (with question),
    ``summary`` (with document) or ``text``.

    Args:
        wanted: the tasks.
        folder: that has the files of tasks by name.
        invalid: ``skip`` leaves out records that cannot be read.

    Raises:
        ConfigError: a task that is not known or comes twice; a file that is not found.
        DataError: a file that is not what it should be; names the line.
    """
    if not wanted:
        raise ConfigError(f"tasks is empty; name some of {', '.join(TASKS)}, or files")
    if folder is not None and not folder.is_dir():
        raise ConfigError(f"files {str(folder)!r} is no folder; give the folder of the data sets")
    found = [load_task(*_found(one, folder), invalid) for one in wanted]
    names = [loaded.task.name for loaded in found]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ConfigError(
            f"tasks has {twice[0]} twice; give each once, and files names that differ"
        )
    return found


def _found(wanted: str, folder: Path | None) -> tuple[Task, Path]:
    name, equals, file = wanted.partition("=")
    if name in TASKS:
        task = TASKS[name]
        return task, Path(file) if equals else find_file(task, folder)
    path = Path(wanted)
    if path.suffix in (".jsonl", ".txt"):
        return _task_of(path), path
    near = difflib.get_close_matches(name, TASKS, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ConfigError(
        f"tasks has {wanted!r}, which is neither one of {', '.join(TASKS)} nor a file"
        f" .jsonl or .txt{hint}"
    )


def _task_of(path: Path) -> Task:
    """The task of a file of the user's, by the fields of its first record."""
    row = Row(f"{path}:1", {"text": ""})
    if path.suffix == ".jsonl":
        row = next(read_jsonl(path))
    for name, task in _OF_FIELDS.items():
        if name in row.fields:
            return replace(task, name=path.stem)
    raise DataError(
        f"{row.where} has the fields {', '.join(row.fields)}; one of {', '.join(_OF_FIELDS)} is"
        " expected, which says what the file is for"
    )
