"""The report's account of training: curves over steps, and the wall time by category."""

from __future__ import annotations

import math
from typing import Any

from llm_jax.bench.charts import BarPart, Points, Series, line_chart, smooth, stacked_bar
from llm_jax.bench.page import Html, duration, missing, percent, section, table, tag
from llm_jax.bench.run_files import BASELINES, GOODPUT, RunRecord, points


def curves(run: RunRecord) -> Html:
    """Loss, learning rate, speed and gradient norm over steps."""
    levels = []
    for key, name in BASELINES.items():
        perplexity = run.score(key, "perplexity")
        if perplexity:
            levels.append((name, math.log(perplexity)))
    loss, window = _smoothed(run.points("loss"), "train", "blue")
    loss.append(Series("validation", points(run.evals, "loss"), "orange", dots=True))
    speed, _ = _smoothed(run.points("tokens_per_second"), "tokens/s", "green")
    norm, _ = _smoothed(run.points("grad_norm"), "norm", "purple")
    rate = [Series("learning rate", run.points("learning_rate"), "blue")]
    note = ""
    if window > 1:
        note = (
            f"Strong lines: means of up to {window:,} records around a step; faint: every record."
        )
    loss_chart = line_chart("Loss", "nats per token", loss, levels=levels, note=note, class_="tall")
    charts = tag(
        "div",
        tag("div", loss_chart, class_="wide"),
        line_chart("Speed", "tokens per second", speed, zero=True),
        line_chart("Learning rate", "", rate, zero=True),
        line_chart("Gradient norm", "before clipping", norm, zero=True),
        class_="charts",
    )
    return section("Training", charts)


def _smoothed(records: Points, name: str, colour: str) -> tuple[list[Series], int]:
    """A smoothed curve over a faint one of every record, and the size of the smoothing window.

    There is no faint curve where there are too few records to smooth.
    """
    mean, window = smooth(records)
    if window == 1:
        return [Series(name, mean, colour)], window
    faint = Series(name, records, f"{colour} faint")
    return [faint, Series(f"{name}, smoothed", mean, colour)], window


def wall_time(run: RunRecord) -> Html:
    """The wall time of all starts by goodput category."""
    title = "Where wall time went"
    if not run.wall:
        return missing(title, "The run has no goodput record; it writes one when it ends.")
    spent = run.spent
    rest = run.wall - sum(spent.values())
    if rest > 0.0005 * run.wall:
        spent["unaccounted"] = rest
    parts = []
    rows = []
    for name, seconds in spent.items():
        colour, description = GOODPUT.get(name, ("grey", ""))
        shown = duration(seconds)
        parts.append(BarPart(name, seconds, shown, colour))
        key = tag("span", tag("i", class_=f"swatch {colour}"), name, class_="key")
        rows.append((key, description, shown, percent(seconds / run.wall)))
    return section(
        title,
        stacked_bar(parts, "Wall time by what it was spent on, as in the table below"),
        table(("category", "what it is", "time", "share"), rows, (2, 3)),
        tag("p", " ".join(_remarks(run, rest)), class_="remark"),
    )


def _remarks(run: RunRecord, rest: float) -> list[str]:
    """Remarks on the wall time, of which ``rest`` seconds are in no category."""
    covered = percent(1 - max(rest, 0) / run.wall)
    out = [f"The categories account for {covered} of {duration(run.wall)}."]
    wait = run.median("data_wait")
    if wait is not None:
        out.append(f"Median share of a step spent waiting for data: {percent(wait)}.")
    if len(run.starts) > len(run.goodput):
        out.append(
            f"Counted: the {len(run.goodput)} of this run’s {len(run.starts)} starts that have a"
            " goodput record."
        )
    stages: dict[str, Any] = (run.results or {}).get("stages") or {}
    if stages:
        times = ", ".join(f"{name} {duration(seconds)}" for name, seconds in stages.items())
        out.append(f"Stages of the whole command: {times}.")
    return out
