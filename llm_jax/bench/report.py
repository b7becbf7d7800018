"""``report.html``: what a run did, on one page that needs nothing but a browser.

    write_report(Path("runs/quickstart"))

reads ``config.json`` and ``metrics.jsonl`` of a run's folder and, if they exist, ``results.json``
(the trained model against its baselines, and samples) and ``data.json`` (the manifest of the
shards).
"""

from __future__ import annotations

from pathlib import Path

import llm_jax
from llm_jax.bench import report_details, report_results, report_training
from llm_jax.bench.page import STYLE, Html, tag
from llm_jax.bench.run_files import RunRecord, read_run
from llm_jax.files import write_atomic
from llm_jax.storage.paths import path_of

_SECTIONS = (
    report_results.header,
    report_results.headline,
    report_training.curves,
    report_training.wall_time,
    report_results.baselines,
    report_results.samples,
    report_details.data_card,
    report_details.settings,
    report_details.environment,
)


def write_report(folder: Path) -> Path:
    """Writes ``report.html`` into a run's folder and returns its path.

    Raises:
        ConfigError: the folder has no ``config.json`` or no ``metrics.jsonl``, or a file in it is
            not valid JSON.
    """
    run = read_run(path_of(folder))
    path = run.folder / "report.html"
    write_atomic(path, f"<!doctype html>\n{_page(run)}\n".encode())
    return path


def _page(run: RunRecord) -> Html:
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", f"{run.name} · llm_jax run report"),
        tag("style", STYLE),
    )
    footer = tag(
        "footer", f"Written by llm_jax {llm_jax.__version__} from the files in {run.folder.name}/."
    )
    body = tag("body", tag("main", *(section(run) for section in _SECTIONS), footer))
    return tag("html", head, body, lang="en")
