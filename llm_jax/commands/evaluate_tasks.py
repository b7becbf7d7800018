"""``llm-jax eval RUN --tasks …``: a model's answers to questions; and pages that compare them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llm_jax.api.load import load
from llm_jax.commands.tasks_page import figure_text, tasks_page
from llm_jax.config import MeshConfig
from llm_jax.evaluation.tasks.known import TASKS
from llm_jax.evaluation.tasks.questions import Long
from llm_jax.evaluation.tasks.task import Invalid
from llm_jax.files import write_atomic
from llm_jax.ranges import Count, Natural, checked
from llm_jax.storage.paths import as_bucket
from llm_jax.training.compile_cache import use_compile_cache
from llm_jax.types import ConfigError

PAGE = "report.html"


@checked
def evaluate_on_tasks(
    run: Path,
    tasks: str,
    *,
    shots: str = "0",
    files: Path | None = None,
    limit: Natural = 0,
    out: Path | None = None,
    step: Natural | None = None,
    seed: Natural = 0,
    batch_size: Count = 16,
    long: Long = "refuse",
    invalid: Invalid = "refuse",
    beside: tuple[Path, ...] = (),
) -> str:
    """A model's answers to the questions of tasks: figures with 95 % intervals beside trivial
    baselines, every answer in a file, and a page. A stopped evaluation goes on where it was.

    Tasks: mmlu, piqa, boolq, openbookqa, commonsenseqa, truthfulqa, truthfulqa_gen, xsum; NAME=FILE
    for one of them on another file; or your own FILE.jsonl (question, choices, answer; question,
    answer; document, summary; or text) or FILE.txt.

    Args:
        run: folder of the run or model, or a GGUF file.
        tasks: names and files, between commas.
        shots: numbers of examples before each question, between commas, such as 0,5.
        files: folder that has the data sets of the named tasks, however deep.
        limit: questions of each task, drawn with the seed; 0 is all.
        out: folder of the answers, the results and the page; default: tasks/step_N in the run.
        step: which checkpoint; the newest if not given.
        seed: of the questions that are drawn and of their examples.
        batch_size: choices or texts computed at once, over all devices.
        long: what becomes of prompts longer than the context: refuse, skip (left out, and counted)
            or truncate-left (cut, and counted).
        invalid: what becomes of records that cannot be read: refuse, or skip (counted).
        beside: folders of earlier results, which the page shows beside these.
    """
    use_compile_cache()
    lm = load(run, step, mesh=MeshConfig())
    folder = _out(run, out, lm.step)
    results = lm.evaluate_tasks(
        _between_commas("tasks", tasks),
        files=files,
        shots=_numbers(shots),
        limit=limit,
        seed=seed,
        batch_size=batch_size,
        long=long,
        invalid=invalid,
        out=folder,
        name=str(run),
    )
    page = folder / PAGE
    write_atomic(page, tasks_page([folder, *beside]).encode())
    return f"{table(results)}\n\n{page}"


@checked
def compare_results(results: tuple[Path, ...], out: Path) -> str:
    """One page of several evaluations on tasks side by side, with every answer.

    Args:
        results: folders that ``llm-jax eval --tasks`` wrote.
        out: the page, an .html file.
    """
    if not results:
        raise ConfigError("results is empty; give folders of results (--results A B)")
    page = tasks_page(results)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(out, page.encode())
    return str(out)


def table(results: dict[str, Any]) -> str:
    """Figures as lines of text."""
    lines = []
    for one in results["results"]:
        left_out = len(one["invalid"]) + (len(one["long_prompts"]) if one["long"] == "skip" else 0)
        notes = f", {left_out} left out" if left_out else ""
        if one["long_prompts"] and one["long"] == "truncate-left":
            notes += f", {len(one['long_prompts'])} prompts cut"
        lines.append(f"{one['task']}, {one['shots']} shots, {one['items']} items{notes}")
        lines += [f"  {name:30}{figure_text(figure)}" for name, figure in one["figures"].items()]
        for name, figures in one["baselines"].items():
            lines += [
                f"  {f'{measure} of {name}':30}{figure_text(figure)}"
                for measure, figure in figures.items()
            ]
    return "\n".join(lines)


def _out(run: Path, out: Path | None, step: int) -> Path:
    folder = out
    if folder is None:
        if not run.is_dir():
            raise ConfigError(f"{run} is no folder of a run; give a folder for the answers (--out)")
        folder = run / "tasks" / f"step_{step}"
    if as_bucket(folder) is not None:
        raise ConfigError(
            f"out is {str(folder)!r}, in a bucket, where answers cannot be appended; give a local"
            " folder (--out)"
        )
    return folder


def _between_commas(name: str, text: str) -> list[str]:
    found = [part.strip() for part in text.split(",") if part.strip()]
    if not found:
        known = f"; the tasks are {', '.join(TASKS)}" if name == "tasks" else ""
        raise ConfigError(f"{name} is {text!r}, which names nothing{known}")
    return found


def _numbers(text: str) -> Sequence[int]:
    parts = _between_commas("shots", text)
    for part in parts:
        if not part.isascii() or not part.isdigit():
            raise ConfigError(
                f"shots is {text!r}; numbers between commas are expected, such as 0,5"
            )
    return [int(part) for part in parts]
