"""Reads the files of a run's folder from which the report is made."""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_jax.bench.charts import Points
from llm_jax.bench.page import finite
from llm_jax.config.old_keys import translate
from llm_jax.config.saved import dotted
from llm_jax.training.metrics import read_metrics
from llm_jax.types import ConfigError

Json = dict[str, Any]

# Goodput categories: colour class and description.
GOODPUT = {
    "step": ("blue", "training steps"),
    "compile": ("orange", "the first step, which is compiled"),
    "evaluate": ("green", "evaluation"),
    "checkpoint": ("purple", "saving checkpoints"),
    "data": ("red", "waiting for batches, no step running"),
    "setup": ("sky", "starting: data, model, restoring"),
    "log": ("yellow", "writing metrics"),
}
# The counted models of results.json, the simplest first, and what they are called.
BASELINES = {"unigram": "unigram", "bigram": "bigram", "kneser_ney": "5-gram"}


@dataclass(frozen=True)
class RunRecord:
    """The content of a run's folder.

    Attributes:
        folder: its absolute path.
        config: the resolved settings, by dotted keys of today.
        train: training records by step.
        evals: evaluation records by step.
        setup: what the setup records say, the newest of each key.
        starts: the step of every start.
        goodput: the goodput records of starts that ended.
        results: ``results.json``, or None.
        data: ``data.json``, or None.
    """

    folder: Path
    config: Json
    train: list[Json]
    evals: list[Json]
    setup: Json
    starts: list[int]
    goodput: list[Json]
    results: Json | None
    data: Json | None

    @property
    def name(self) -> str:
        """The config's name, or that of the folder."""
        return self.config.get("name") or self.folder.name

    def points(self, key: str) -> Points:
        """(step, value) of the training records that have a finite ``key``."""
        return points(self.train, key)

    def median(self, key: str) -> float | None:
        """The median of ``key`` over the training records that have it."""
        values = [v for _, v in self.points(key)]
        return statistics.median(values) if values else None

    def score(self, who: str, key: str) -> float | None:
        """A figure of ``results.json``: ``who`` is model or one of ``BASELINES``."""
        return finite(((self.results or {}).get(who) or {}).get(key))

    @property
    def steps(self) -> int:
        """The last step in the metrics."""
        return max((r["step"] for r in [*self.train, *self.evals]), default=0)

    @property
    def wall(self) -> float:
        """Wall seconds of all starts that have a goodput record."""
        return sum(finite(r.get("wall")) or 0.0 for r in self.goodput)

    @property
    def spent(self) -> dict[str, float]:
        """Seconds by goodput category."""
        spent = dict.fromkeys(GOODPUT, 0.0)
        for record in self.goodput:
            for name, seconds in record.get("seconds", {}).items():
                spent[name] = spent.get(name, 0.0) + (finite(seconds) or 0.0)
        return spent


def points(records: list[Json], key: str) -> Points:
    """(step, value) of the records that have a finite ``key``."""
    return [(r["step"], v) for r in records if (v := finite(r.get(key))) is not None]


def read_run(folder: Path) -> RunRecord:
    """Reads a run's folder.

    Raises:
        ConfigError: the folder has no ``config.json`` or no ``metrics.jsonl``, or a file is not
            valid JSON.
    """
    config = _read_json(folder / "config.json")
    metrics = folder / "metrics.jsonl"
    if config is None or not metrics.is_file():
        missing = "config.json" if config is None else metrics.name
        raise ConfigError(
            f"{str(folder)!r} is not a run folder: it has no {missing}; give the folder that"
            " training wrote"
        )
    try:
        records = read_metrics(metrics)
    except ValueError as error:
        raise ConfigError(
            f"{str(metrics)!r} has a line that is not valid JSON ({error}); remove that line"
        ) from error
    kinds: dict[str, list[Json]] = {kind: [] for kind in ("setup", "train", "eval", "ledger")}
    for record in records:
        kinds.setdefault(record["kind"], []).append(record)
    return RunRecord(
        folder=folder.resolve(),
        config=translate(dotted(config)).values,
        train=_by_step(kinds["train"]),
        evals=_by_step(kinds["eval"]),
        setup={k: v for r in kinds["setup"] for k, v in r.items() if k not in ("kind", "step")},
        starts=[r["step"] for r in kinds["setup"]],
        goodput=kinds["ledger"],
        results=_read_json(folder / "results.json"),
        data=_read_json(folder / "data.json"),
    )


def _by_step(records: list[Json]) -> list[Json]:
    """Records in the order of their steps; the later one where a step was written twice."""
    return [record for _, record in sorted({r["step"]: r for r in records}.items())]


def _read_json(path: Path) -> Json | None:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ConfigError(
            f"{str(path)!r} is not valid JSON ({error}); delete it or write it again"
        ) from error
