"""What a task leaves: ``evaluation.json``, ``answers.jsonl`` and a page of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llm_jax.bench.page import STYLE, Html, join, section, table, tag
from llm_jax.commands.tasks_page import figure_text
from llm_jax.commands.written import json_line
from llm_jax.evaluation.tasks.measures import Figures
from llm_jax.files import make_folder, write_atomic, write_json

EVALUATION = "evaluation.json"
ANSWERS = "answers.jsonl"
PAGE = "report.html"
_SHOWN = 200

Record = dict[str, Any]


def results(
    task: str,
    model: Path,
    step: int,
    records: Sequence[Record],
    *,
    figures: Figures,
    baselines: dict[str, Figures],
    **about: Any,
) -> dict[str, Any]:
    """The results of a task.

    Args:
        task: its name.
        model: folder of the model.
        step: of its checkpoint.
        records: of the answers.
        figures: each ``{"value", "low", "high"}``.
        baselines: the same of what needs no model, by name.
        **about: how figures were made, and what was left out.
    """
    return {
        "task": task,
        "model": str(model),
        "step": step,
        "items": len(records),
        "figures": figures,
        "baselines": baselines,
        **about,
    }


def write_results(out: Path, found: dict[str, Any], records: Sequence[Record]) -> str:
    """Writes the three files, and returns the figures as lines of text."""
    make_folder(out)
    write_json(out / EVALUATION, found)
    write_atomic(out / ANSWERS, "".join(map(json_line, records)).encode())
    write_atomic(out / PAGE, page(found, records).encode())
    return f"{lines(found)}\n\n{out / PAGE}"


def plain(value: float) -> dict[str, Any]:
    """A figure without an interval."""
    return {"value": float(value), "low": None, "high": None}


def lines(found: dict[str, Any]) -> str:
    """The figures beside those of the baselines, as lines of text."""
    rows = _rows(found)
    head = ["", "model", *found["baselines"]]
    widths = [max(len(row[n]) for row in [head, *rows]) for n in range(len(head))]
    shown = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip()
        for row in [head, *rows]
    ]
    left_out = found.get("long_texts", 0)
    what = {"skip": "left out", "truncate": "cut"}.get(found.get("long", ""), "too long")
    note = f", {left_out} too long and {what}" if left_out else ""
    return "\n".join([f"{found['task']}, {found['items']} items{note}", *shown])


def _rows(found: dict[str, Any]) -> list[list[str]]:
    names = dict.fromkeys(found["figures"])
    return [
        [
            name,
            figure_text(found["figures"].get(name)),
            *(figure_text(figures.get(name)) for figures in found["baselines"].values()),
        ]
        for name in names
    ]


def page(found: dict[str, Any], records: Sequence[Record]) -> str:
    """One self-contained HTML page: the figures, how they were made, and every answer."""
    title = f"{found['task']}: {found['model']}, step {found['step']}"
    head = join(
        [
            tag("meta", charset="utf-8"),
            tag("meta", name="viewport", content="width=device-width"),
            tag("title", title),
            tag("style", STYLE),
        ]
    )
    note = "Value with its 95 % interval by the bootstrap over items, where it has one."
    figures = table(["", "model", *found["baselines"]], _rows(found), numeric=(1, 2))
    body = tag(
        "main",
        tag("h1", title),
        tag("p", note, class_="soft"),
        section("Figures", figures),
        section("How", table(["", ""], [[k, str(v)] for k, v in _about(found).items()])),
        section(f"{len(records)} answers", _answers(records)),
    )
    return f"<!doctype html>\n{tag('html', tag('head', head), tag('body', body), lang='en')}\n"


def _about(found: dict[str, Any]) -> dict[str, Any]:
    apart = ("task", "figures", "baselines", "by_label")
    return {name: value for name, value in found.items() if name not in apart}


def _answers(records: Sequence[Record]) -> Html:
    names = list(dict.fromkeys(name for record in records for name in record))
    rows = [[_short(record.get(name, "")) for name in names] for record in records]
    return table(names, rows)


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
