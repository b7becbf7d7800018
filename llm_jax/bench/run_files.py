"""What a run's folder says: the files that the report is made from."""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_jax.bench.charts import Points
from llm_jax.bench.page import finite
from llm_jax.training.metrics import read_metrics
from llm_jax.types import ConfigError

Json = dict[str, Any]

LEDGER = {
    "step": ("blue", "training steps"),
    "compile": ("orange", "the first step, which is compiled"),
    "evaluate": ("green", "evaluation"),
    "checkpoint": ("purple", "saving checkpoints"),
    "data": ("red", "waiting for batches, no step running"),
    "setup": ("sky", "starting: data, model, restoring"),
    "log": ("yellow", "writing metrics"),
}


@dataclass(frozen=True)
class RunRecord:
    """What a run's folder says. ``train`` and ``evals`` go by step, ``setup`` is the newest,
    ``starts`` has all.
    """

    folder: Path
    config: Json
    train: list[Json]
    evals: list[Json]
    setup: Json
    starts: list[int]
    ledgers: list[Json]
    results: Json | None
    data: Json | None

    def points(self, key: str) -> Points:
        """(step, value) of the training records that have a finite ``key``."""
        return points(self.train, key)

    def median(self, key: str) -> float | None:
        """The median of ``key`` over the training records that have it."""
        values = [v for _, v in self.points(key)]
        return statistics.median(values) if values else None

    def score(self, who: str, key: str) -> float | None:
        """A figure of ``results.json``: ``who`` is model, unigram or bigram."""
        return finite(((self.results or {}).get(who) or {}).get(key))

    @property
    def steps(self) -> int:
        """Steps done, as far as the metrics say."""
        return max((r["step"] for r in [*self.train, *self.evals]), default=0)

    @property
    def wall(self) -> float:
        """Wall seconds of all starts that left a ledger."""
        return sum(finite(r.get("wall")) or 0.0 for r in self.ledgers)

    @property
    def spent(self) -> dict[str, float]:
        """Seconds by ledger category."""
        spent = dict.fromkeys(LEDGER, 0.0)
        for name, seconds in (item for r in self.ledgers for item in r.get("seconds", {}).items()):
            spent[name] = spent.get(name, 0.0) + (finite(seconds) or 0.0)
        return spent


def points(records: list[Json], key: str) -> Points:
    """(step, value) of the records that have a finite ``key``."""
    return [(r["step"], v) for r in records if (v := finite(r.get(key))) is not None]


def read_run(folder: Path) -> RunRecord:
    """The files of a run's folder; see ``write_report`` for the errors."""
    config, metrics = _read_json(folder / "config.json"), folder / "metrics.jsonl"
    if config is None or not metrics.is_file():
        missing = "config.json" if config is None else metrics.name
        raise ConfigError(
            f"{str(folder)!r} is no run folder: it has no {missing}; give the folder that training"
            " wrote"
        )
    try:
        records = read_metrics(metrics)
    except ValueError as error:
        raise ConfigError(
            f"{str(metrics)!r} has a line that is not JSON ({error}); remove that line"
        ) from error
    kinds: dict[str, list[Json]] = {kind: [] for kind in ("setup", "train", "eval", "ledger")}
    for r in records:
        kinds.setdefault(r["kind"], []).append(r)
    # Of a step that was written twice, the later record counts.
    train, evals = (
        [r for _, r in sorted({r["step"]: r for r in kinds[k]}.items())] for k in ("train", "eval")
    )
    setup = {k: v for r in kinds["setup"] for k, v in r.items() if k not in ("kind", "step")}
    starts, ledgers = [r["step"] for r in kinds["setup"]], kinds["ledger"]
    results, data = _read_json(folder / "results.json"), _read_json(folder / "data.json")
    return RunRecord(folder.resolve(), config, train, evals, setup, starts, ledgers, results, data)


def _read_json(path: Path) -> Json | None:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ConfigError(
            f"{str(path)!r} is not JSON ({error}); delete it or make it again"
        ) from error
