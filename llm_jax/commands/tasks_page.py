"""One self-contained HTML page of results on tasks: figures side by side, and every answer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from llm_jax.bench.page import STYLE, Html, join, number, section, table, tag
from llm_jax.evaluation.tasks.answers import Record, read_answers
from llm_jax.evaluation.tasks.run import RESULTS
from llm_jax.types import ConfigError, DataError

_OWN_STYLE = Html("""
details{border-bottom:1px solid var(--rule);padding:4px 0}summary{margin:0;font-size:14px}
details[open]{padding-bottom:14px}.yes{color:var(--green)}.no{color:var(--red)}
h3{margin-top:28px}
""")
_SHOWN = 110


class Column(NamedTuple):
    """Results of one model.

    Attributes:
        name: of the model, with its step.
        folder: of the results.
        results: what ``results.json`` has.
    """

    name: str
    folder: Path
    results: dict[str, Any]


class Cell(NamedTuple):
    """What one model did in one task.

    Attributes:
        column: the model.
        result: of the task.
        answers: by number of the item.
    """

    column: Column
    result: dict[str, Any]
    answers: dict[int, Record]


def tasks_page(folders: Sequence[Path]) -> str:
    """The page of several folders of results.

    Raises:
        ConfigError: a folder comes twice.
        DataError: a folder has no results, or damaged ones; or a task was asked of another file,
            or otherwise, in another folder.
    """
    if len(set(folders)) != len(folders):
        raise ConfigError("the same folder of results is given twice; give each once")
    columns = [read_results(folder) for folder in folders]
    keys = dict.fromkeys(_key(one) for column in columns for one in column.results["results"])
    cells = {key: _cells(key, columns) for key in keys}
    head = join(
        [
            tag("meta", charset="utf-8"),
            tag("meta", name="viewport", content="width=device-width"),
            tag("title", "Results on tasks"),
            tag("style", STYLE, _OWN_STYLE),
        ]
    )
    body = tag(
        "main",
        tag("h1", "Results on tasks"),
        tag("p", "Value with its 95 % interval by the bootstrap over questions.", class_="soft"),
        section("Figures", _figures(columns, cells)),
        section("Models", _models(columns)),
        *(_task_section(found) for found in cells.values()),
    )
    return f"<!doctype html>\n{tag('html', tag('head', head), tag('body', body), lang='en')}\n"


def read_results(folder: Path) -> Column:
    """The results in a folder.

    Raises:
        DataError: there are none, or they are damaged.
    """
    path = folder / RESULTS
    if not path.is_file():
        raise DataError(f"{folder} has no {RESULTS}; run `llm-jax eval RUN --tasks …` to its end")
    try:
        value = json.loads(path.read_bytes())
        name = f"{value['model']}, step {value['step']}"
        list(value["results"])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} is no file of results ({error!r}); run the evaluation again"
        ) from error
    return Column(name, folder, value)


def figure_text(figure: dict[str, Any] | None) -> str:
    """``0.423 [0.355, 0.490]``; ``–`` for none."""
    if figure is None:
        return "–"
    if figure["low"] is None:
        return number(figure["value"])
    return f"{number(figure['value'])} [{number(figure['low'])}, {number(figure['high'])}]"


def _key(result: dict[str, Any]) -> tuple[str, int]:
    return result["task"], result["shots"]


def _cells(key: tuple[str, int], columns: Sequence[Column]) -> list[Cell]:
    found: list[Cell] = []
    for column in columns:
        for result in column.results["results"]:
            if _key(result) == key:
                answers = read_answers(column.folder / result["answers"])
                found.append(Cell(column, result, {r["item"]: r for r in answers}))
    first = found[0].result
    for cell in found[1:]:
        for name in ("sha256", "template", "delimiter", "separator", "kind"):
            if cell.result[name] != first[name]:
                raise DataError(
                    f"task {key[0]}: {name} is {cell.result[name]!r} in {cell.column.folder} and"
                    f" {first[name]!r} in {found[0].column.folder}; compare results of the same"
                    " questions"
                )
    return found


def _figures(columns: Sequence[Column], cells: dict[tuple[str, int], list[Cell]]) -> Html:
    rows: list[list[Any]] = []
    for (task, shots), found in cells.items():
        by_folder = {cell.column.folder: cell.result["figures"] for cell in found}
        for measure in found[0].result["figures"]:
            figures = [by_folder.get(column.folder, {}).get(measure) for column in columns]
            rows.append([task, shots, measure, *map(figure_text, figures)])
        names = dict.fromkeys(name for cell in found for name in cell.result["baselines"])
        of = {cell.column.folder: cell.result["baselines"] for cell in found}
        for name in names:
            for measure in found[0].result["baselines"][name]:
                own = [of.get(column.folder, {}).get(name, {}).get(measure) for column in columns]
                label = tag("span", f"{measure} of {name}", class_="soft")
                rows.append([task, shots, label, *map(figure_text, own)])
    head = ["task", "shots", "figure", *(column.name for column in columns)]
    return table(head, rows, numeric=range(3, 3 + len(columns)))


def _models(columns: Sequence[Column]) -> Html:
    names = ("parameters", "tokenizer", "context")
    rows = [
        [column.name, str(column.folder), *(str(column.results[name])[:16] for name in names)]
        for column in columns
    ]
    return table(["model", "results", *names], rows)


def _task_section(cells: Sequence[Cell]) -> Html:
    result = cells[0].result
    about = table(
        ["", ""],
        [
            ["template", tag("code", result["template"])],
            ["file", f"{result['file']}, sha256 {result['sha256']}"],
            ["seed", result["seed"]],
            ["how", result["signature"]],
            *(["items", f"{cell.column.name}: {_counts(cell.result)}"] for cell in cells),
        ],
    )
    numbers = sorted({number for cell in cells for number in cell.answers})
    answers = [_answer(item, cells) for item in numbers]
    title = f"{result['task']}, {result['shots']} shots"
    return section(title, about, tag("h3", f"{len(numbers)} answers"), *answers)


def _counts(result: dict[str, Any]) -> str:
    parts = [f"{result['items']} answered"]
    if result["invalid"]:
        parts.append(f"{len(result['invalid'])} records that cannot be read left out")
    if result["long_prompts"]:
        what = "left out" if result["long"] == "skip" else "cut at the left"
        parts.append(f"{len(result['long_prompts'])} prompts beyond the context {what}")
    return ", ".join(parts)


def _answer(item: int, cells: Sequence[Cell]) -> Html:
    answered = [(cell, cell.answers[item]) for cell in cells if item in cell.answers]
    record = answered[0][1]
    marks = [_mark(one) for _, one in answered]
    last = str(record.get("prompt") or record.get("begin", "")).strip()
    shown = last if len(last) <= _SHOWN else f"… {last[-_SHOWN:]}"
    summary = tag("summary", f"{item} ", *marks, " ", tag("span", shown, class_="soft"))
    where = tag("p", record["where"], class_="soft")
    prompt = tag("pre", record.get("prompt") or record.get("begin", ""))
    return tag("details", summary, where, prompt, _shown_answers(answered))


def _mark(record: Record) -> Html:
    if "chosen" not in record:
        return Html("")
    right = record["chosen"]["accuracy"] == record["gold"]
    return tag("span", "✓" if right else "✗", class_="yes" if right else "no")


def _shown_answers(answered: Sequence[tuple[Cell, Record]]) -> Html:
    record = answered[0][1]
    if "choices" in record:
        return join([_choices(cell, one) for cell, one in answered])
    if "nll" in record:
        names = ("nll", "tokens", "words", "bytes", "windows")
        rows = [[cell.column.name, *(one[name] for name in names)] for cell, one in answered]
        return table(["model", *names], rows)
    rows = [[cell.column.name, tag("pre", one["text"])] for cell, one in answered]
    rows += [["reference", tag("pre", text)] for text in record["references"]]
    return table(["", "text"], rows)


def _choices(cell: Cell, record: Record) -> Html:
    rows = []
    for at, choice in enumerate(record["choices"]):
        text = record["texts"][at]
        by = [name for name, chosen in record["chosen"].items() if chosen == at]
        rows.append(
            [
                tag("b", choice) if at == record["gold"] else choice,
                text if text != choice else "",
                number(record["log_likelihoods"][at], 5),
                record["tokens"][at],
                number(record["unconditional"][at], 5),
                "right" if at == record["gold"] else "",
                ", ".join(by),
            ]
        )
    head = ["choice", "", "log-likelihood", "tokens", "alone", "", "chosen by"]
    caption = cell.column.name + (
        f", prompt cut by {record['cut']} tokens" if record["cut"] else ""
    )
    return join([tag("h3", caption), table(head, rows, numeric=(2, 3, 4))])
