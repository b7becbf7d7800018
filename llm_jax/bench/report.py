"""``report.html``: what a run did, on one page that needs nothing but a browser.

    write_report(Path("runs/quickstart"))

reads ``config.json`` and ``metrics.jsonl`` of a run's folder and, where they are, ``results.json``
(the trained model against its baselines, and samples) and ``data.json`` (the manifest of the
shards).
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import llm_jax
from llm_jax.bench.charts import Series, line_chart, smooth, stacked_bar
from llm_jax.bench.page import (
    STYLE,
    Html,
    compact,
    duration,
    finite,
    join,
    number,
    percent,
    table,
    tag,
    value_text,
)
from llm_jax.bench.run_files import LEDGER, Json, RunRecord, points, read_run
from llm_jax.config import Config

_MANY = 20


def write_report(folder: Path) -> Path:
    """Makes ``report.html`` in a run's folder and returns its path.

    Raises ConfigError when the folder has no ``config.json`` or ``metrics.jsonl``, or a file in it
    is not JSON.
    """
    run = read_run(Path(folder))
    parts = (
        header,
        headline,
        curves,
        wall_time,
        baselines,
        samples,
        data_card,
        settings,
        environment,
    )
    viewport = tag("meta", name="viewport", content="width=device-width, initial-scale=1")
    title = tag("title", f"{_name(run)} · llm_jax run report")
    foot = tag(
        "footer", f"Written by llm_jax {llm_jax.__version__} from the files in {run.folder.name}/."
    )
    body = tag("body", tag("main", *(part(run) for part in parts), foot))
    page = tag(
        "html",
        tag("head", tag("meta", charset="utf-8"), viewport, title, tag("style", STYLE)),
        body,
        lang="en",
    )
    path, partial = run.folder / "report.html", run.folder / ".report.html.partial"
    partial.write_text(f"<!doctype html>\n{page}\n", encoding="utf-8")
    os.replace(partial, path)
    return path


def _name(run: RunRecord) -> str:
    return run.config.get("name") or run.folder.name


def section(title: str, *body: Any) -> Html:
    """A titled part of the page."""
    return tag("section", tag("h2", title), *body)


def _absent(title: str, why: str) -> Html:
    return section(title, tag("p", why, class_="missing"))


def header(run: RunRecord) -> Html:
    """Name, how far the run came, shape of the model."""
    m, o, d = (run.config.get(s) or {} for s in ("model", "optimizer", "data"))
    total = run.config.get("train", {}).get("steps") or run.steps
    resumed = [f"{s:,}" for s in run.starts if s > 0]
    line = [
        f"{'finished' if run.steps >= total else 'not finished'}: {run.steps:,} of {total:,} steps"
    ]
    line += [f"resumed at step {', '.join(resumed)}"] if resumed else []
    line += (
        [f"{m.get('num_layers')} layers, {m.get('num_heads')} heads, width {m.get('embed_dim')}"]
        if m
        else []
    )
    line += [f"batch {d.get('batch_size')} × {d.get('seq_length')} tokens"] if d else []
    line += [f"{o.get('name')}, {o.get('schedule')} schedule"] if o else []
    return tag("header", tag("h1", _name(run)), tag("div", " · ".join(line), class_="soft"))


def headline(run: RunRecord) -> Html:
    """The few numbers a reader came for."""
    shown = {
        k: [f"{w} {number(run.score(w, k), 4)}" for w in ("unigram", "bigram") if run.score(w, k)]
        for k in ("perplexity", "bits_per_byte")
    }
    perplexity = run.score("model", "perplexity") or (
        run.evals[-1].get("perplexity") if run.evals else None
    )
    tokens = run.steps * (finite(run.setup.get("global_tokens_per_step")) or 0)
    peak, rows = finite(run.setup.get("peak_flops")), finite(run.setup.get("rows_per_epoch"))
    epochs = (
        run.steps * (finite(run.config.get("data", {}).get("batch_size")) or 0) / rows
        if rows
        else 0
    )
    speed, each = run.median("tokens_per_second"), run.median("tokens_per_second_per_device")
    devices, covered = (
        round(speed / each) if speed and each else 0,
        sum(run.spent.values()) / (run.wall or 1),
    )
    vocabulary = run.config.get("model", {}).get("vocab_size")
    rate = compact(speed) if (speed or 0) >= 1e5 else number(speed)
    facts = [
        (
            "Validation perplexity",
            number(perplexity, 4),
            " · ".join(shown["perplexity"]) or "no baselines",
        ),
        (
            "Bits per byte",
            number(run.score("model", "bits_per_byte"), 4),
            " · ".join(shown["bits_per_byte"]),
        ),
        (
            "Parameters",
            compact(run.setup.get("parameters")),
            f"vocabulary {value_text(vocabulary)}",
        ),
        ("Tokens seen", compact(tokens or None), f"{number(epochs)} epochs" if epochs else ""),
        (
            "Tokens per second",
            rate,
            f"median, {devices} device{'s' * (devices != 1)}" if devices else "",
        ),
        (
            "MFU, causal",
            percent(run.median("mfu_causal")),
            f"{percent(run.median('mfu_full'))} by full attention",
        ),
        (
            "Wall time",
            duration(run.wall or None),
            f"{percent(covered)} accounted for" if run.wall else "",
        ),
    ]
    cells = [
        tag("div", tag("dt", name), tag("dd", v, class_="value"), tag("dd", note))
        for name, v, note in facts
    ]
    source = (
        f"{compact(peak, 'FLOP/s')} per device ({run.setup.get('peak_source')})"
        if peak
        else "a peak not recorded"
    )
    return join(
        [
            tag("dl", *cells, class_="facts"),
            tag("p", f"MFU is the median share of {source}.", class_="remark"),
        ]
    )


def curves(run: RunRecord) -> Html:
    """Loss, learning rate, speed and gradient norm over steps."""
    levels = [(w, math.log(p)) for w in ("unigram", "bigram") if (p := run.score(w, "perplexity"))]
    (loss, window), validation = _smoothed(run, "loss", "train", "blue"), points(run.evals, "loss")
    loss.append(Series("validation", validation, "orange", dots=True))
    speed, _ = _smoothed(run, "tokens_per_second", "tokens/s", "green")
    norm, _ = _smoothed(run, "grad_norm", "norm", "purple")
    rate = [Series("learning rate", run.points("learning_rate"), "blue")]
    note = (
        f"Strong lines: means of up to {window:,} records around a step; faint: every record."
        if window > 1
        else ""
    )
    return section(
        "Training",
        tag(
            "div",
            tag(
                "div",
                line_chart("Loss", "nats per token", loss, levels, note=note, class_="tall"),
                class_="wide",
            ),
            line_chart("Speed", "tokens per second", speed, zero=True),
            line_chart("Learning rate", "", rate, zero=True),
            line_chart("Gradient norm", "before clipping", norm, zero=True),
            class_="charts",
        ),
    )


def _smoothed(run: RunRecord, key: str, name: str, colour: str) -> tuple[list[Series], int]:
    """The curve of ``key``, over a faint one of every record if there are enough to smooth; and the
    window's size.
    """
    points = run.points(key)
    mean, window = smooth(points)
    faint = [Series(name, points, f"{colour} faint")] if window > 1 else []
    return [*faint, Series(f"{name}, smoothed" if faint else name, mean, colour)], window


def wall_time(run: RunRecord) -> Html:
    """Where wall time went, from the ledgers."""
    title, wall, spent = "Where wall time went", run.wall, run.spent
    if not wall:
        return _absent(title, "The run left no ledger; it writes one when it ends.")
    if (rest := wall - sum(spent.values())) > 0.0005 * wall:
        spent["unaccounted"] = rest
    parts = [(n, s, duration(s), *LEDGER.get(n, ("grey", ""))) for n, s in spent.items()]

    def named(name, colour):
        return tag("span", tag("i", class_=f"swatch {colour}"), name, class_="key")

    rows = [(named(n, c), what, shown, percent(s / wall)) for n, s, shown, c, what in parts]
    said = [f"The ledger accounts for {percent(1 - max(rest, 0) / wall)} of {duration(wall)}."]
    if (wait := run.median("data_wait")) is not None:
        said.append(f"Median share of a step spent waiting for data: {percent(wait)}.")
    if len(run.starts) > len(run.ledgers):
        said.append(
            f"Counted: the {len(run.ledgers)} of this run’s {len(run.starts)} starts that left a"
            " ledger."
        )
    if stages := (run.results or {}).get("stages"):
        said.append(
            "Stages of the whole command:"
            f" {', '.join(f'{k} {duration(v)}' for k, v in stages.items())}."
        )
    bar = stacked_bar(
        [p[:4] for p in parts], "Wall time by what it was spent on, as in the table below"
    )
    head = ("category", "what it is", "time", "share")
    return section(title, bar, table(head, rows, (2, 3)), tag("p", " ".join(said), class_="remark"))


def baselines(run: RunRecord) -> Html:
    """The model beside a unigram and a bigram model of the same shards."""
    if run.results is None:
        return _absent("Against baselines", "Not made: the folder has no results.json.")
    keys = ("bits_per_byte", "perplexity", "word_perplexity", "byte_perplexity")
    who = [w for w in ("model", "bigram", "unigram") if run.results.get(w)]
    top = max((run.score(w, keys[0]) or 0 for w in who), default=0) or 1
    rows, ratios, mine = [], [], run.score("model", "perplexity")
    for w in who:
        rect = tag("rect", width=f"{100 * (run.score(w, keys[0]) or 0) / top:.1f}%", height="100%")
        bar = tag(
            "svg", rect, class_=f"bar {'blue' if w == 'model' else 'grey'}", aria_hidden="true"
        )
        rows.append(
            (
                tag("b", "this model") if w == "model" else w,
                bar,
                *(number(run.score(w, k), 4) for k in keys),
            )
        )
        if w != "model" and mine and (theirs := run.score(w, "perplexity")):
            ratio = number(max(theirs / mine, mine / theirs))
            ratios.append(f"{ratio} times {'lower' if mine < theirs else 'higher'} than the {w}’s")
    said = tag("p", f"The model’s perplexity is {' and '.join(ratios)}.") if ratios else ""
    head = ("", "", "bits per byte", "perplexity per token", "per word", "per byte")
    return section(
        "Against baselines", said, table(head, rows, (2, 3, 4, 5)), _scoring(run.results)
    )


def _scoring(results: Json) -> Html:
    m = results.get("model") or {}
    counts = [
        f"{value_text(m[k])} {k}"
        for k in ("tokens", "words", "bytes")
        if finite(m.get(k)) is not None
    ]
    how = [f"step {value_text(results['step'])}"] if finite(results.get("step")) is not None else []
    how += [f"scored on {', '.join(counts)}"] if counts else []
    how += [f"{k} {value_text(m[k])}" for k in ("context", "stride") if k in m]
    how += (
        [f"{'with' if m['bos'] else 'without'} a start token before each document"]
        if "bos" in m
        else []
    )
    return tag(
        "p", "Lower is better. ", f"Model: {'; '.join(how)}." if how else "", class_="remark"
    )


def samples(run: RunRecord) -> Html:
    """What the model writes after each prompt, which stands out; a sample's ``text`` does not
    repeat it.
    """
    made = (run.results or {}).get("samples") or []
    figures = []
    for s in made:
        body = tag("pre", tag("b", s.get("prompt", "")), s.get("text", ""), dir="auto")
        figures.append(
            tag("figure", body, tag("figcaption", s.get("settings", "")), class_="sample")
        )
    return (
        section("Samples", *figures)
        if made
        else _absent("Samples", "Not made: no samples in results.json.")
    )


def data_card(run: RunRecord) -> Html:
    """Sources, splits, what was dropped, and how the text was cleaned and tokenized."""
    d = run.data
    if d is None:
        return _absent("Data card", "Not made: the folder has no data.json.")
    sources, columns = (
        d.get("sources") or [],
        ("documents", "tokens", "blocks", "words", "text_bytes"),
    )

    def row(name, of):
        return (
            name,
            compact(sum(s.get("bytes", 0) for s in of), "B"),
            f"{sum(s.get('documents', 0) for s in of):,}",
        )

    rows = [row(tag("code", s.get("path")), [s]) for s in sources[:_MANY]]
    rows += (
        [row(f"and {len(sources) - _MANY:,} more", sources[_MANY:])] if len(sources) > _MANY else []
    )
    rows += [row(tag("b", "all"), sources)] if len(sources) > 1 else []
    splits = [
        (
            name,
            *(value_text(s.get(c)) for c in columns),
            number(s.get("text_bytes", 0) / (s.get("tokens") or 1)),
        )
        for name, s in (d.get("splits") or {}).items()
    ]
    t, head = (
        d.get("tokenizer") or {},
        ("", *(c.replace("_", " ") for c in columns), "bytes per token"),
    )
    facts = {
        "vocabulary": "vocab_size",
        "special tokens": "special_ids",
        "fingerprint": "fingerprint",
    }
    return section(
        "Data card",
        tag("h3", "Sources"),
        table(("file", "size", "documents"), rows, (1, 2)),
        tag("h3", "Splits"),
        table(head, splits, range(1, 7)),
        tag(
            "div",
            pairs("Dropped and repaired", {**d.get("dropped", {}), **d.get("read", {})}),
            pairs("Tokenizer", {name: t.get(key) for name, key in facts.items()}),
            pairs(
                "Cleaning and layout", {**d.get("options", {}), "block_size": d.get("block_size")}
            ),
            class_="columns",
        ),
    )


def settings(run: RunRecord) -> Html:
    """The resolved config by section, folded; what differs from the defaults is bold."""
    defaults = json.loads(json.dumps(asdict(Config())))
    loose = {k: v for k, v in run.config.items() if not isinstance(v, dict)}
    sections = {"run": loose} | {k: v for k, v in run.config.items() if isinstance(v, dict)}
    tables = [pairs(k, v, defaults if k == "run" else defaults.get(k)) for k, v in sections.items()]
    note = tag("p", "Bold: other than the default.", class_="remark")
    fold = tag(
        "details",
        tag("summary", tag("h2", "Resolved config")),
        note,
        tag("div", *tables, class_="columns"),
    )
    return tag("section", fold)


def environment(run: RunRecord) -> Html:
    """What the run ran on, and what followed from its config."""
    if not run.setup:
        return _absent("Environment", "Not recorded: metrics.jsonl has no setup record.")
    machine, derived = (
        run.setup.get("environment"),
        {k: v for k, v in run.setup.items() if k != "environment"},
    )
    tables = [pairs("Machine and libraries", machine or {}), pairs("Derived values", derived)]
    return section("Environment", tag("div", *tables, class_="columns"))


def pairs(title: str, values: Json, defaults: Json | None = None) -> Html:
    """A titled table of names and values; values that are not the default's are bold where defaults
    are given.
    """
    rows = []
    for k, v in values.items():
        changed = defaults is not None and v != defaults.get(k)
        rows.append((k.replace("_", " "), tag("b", value_text(v)) if changed else value_text(v)))
    return tag("div", tag("h3", title), table((), rows)) if rows else Html("")
