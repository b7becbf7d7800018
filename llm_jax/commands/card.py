"""``llm-jax card``: a model card in Markdown, written from what a run's folder records.

Whatever is not recorded is named as missing, and never left out.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from llm_jax.bench.page import duration, number
from llm_jax.bench.run_files import RunRecord, read_run
from llm_jax.files import write_atomic
from llm_jax.plan.cost import Assumed, Cost, cost
from llm_jax.plan.topology import parse_topology
from llm_jax.ranges import NotNegative, checked
from llm_jax.types import ConfigError

Json = dict[str, Any]
_NONE = "not recorded"
_FIGURES = ("perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte", "accuracy")


@checked
def write_card(
    run: Path,
    *,
    out: Path | None = None,
    topology: str = "",
    price: NotNegative = 0.0,
    pue: NotNegative = 0.0,
    grid: NotNegative = 0.0,
) -> str:
    """Write a model card from the files of a run: architecture, data, training, evaluation, bias,
    energy and cost.

    Args:
        run: folder of the run.
        out: the Markdown file; MODEL_CARD.md in the run's folder if not given.
        topology: where it was trained, such as v5e:2x2, h100:8 or cpu:1, from which energy and cost
            are estimated; not estimated if not given.
        price: USD per chip-hour; 0 takes the list price that is known.
        pue: energy of the building per energy of the chips; 0 takes the platform's.
        grid: g CO2e per kWh; 0 takes the world's mean.
    """
    record = read_run(run)
    spent = _cost(record, topology, Assumed(price, pue, grid))
    sections = [
        f"# {record.name}",
        *_section("Model", _model(record)),
        *_section("Data", _data(record)),
        *_section("Training", _training(record)),
        *_section("Evaluation", _evaluation(run)),
        *_section("Bias and toxicity", _bias(run)),
        *_section("Energy and cost", _energy(spent, topology)),
        *_section("Intended use and limits", [_TO_WRITE]),
    ]
    path = run / "MODEL_CARD.md" if out is None else out
    write_atomic(path, ("\n".join(sections) + "\n").encode())
    return f"model card written to {path}"


_TO_WRITE = "Not stated. The author writes here what the model is for, and what it must not do."


def _section(title: str, lines: Iterable[str]) -> list[str]:
    return ["", f"## {title}", "", *lines]


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    lines = [_row(head), _row("---" for _ in head)]
    return [*lines, *map(_row, rows)]


def _row(cells: Iterable[Any]) -> str:
    shown = (str(cell).replace("|", "\\|").replace("\n", " ") for cell in cells)
    return f"| {' | '.join(shown)} |"


def _model(record: RunRecord) -> list[str]:
    config = record.config
    parameters = record.setup.get("parameters")
    rows = [
        ("parameters", _NONE if parameters is None else f"{parameters:,}"),
        *((key, config[f"model.{key}"]) for key in _MODEL_KEYS if f"model.{key}" in config),
        ("objective", config.get("data.objective", _NONE)),
    ]
    return _table(("setting", "value"), rows)


_MODEL_KEYS = ("num_layers", "embed_dim", "vocab_size", "max_length", "attention", "mlp", "experts")


def _data(record: RunRecord) -> list[str]:
    if record.data is None:
        path = record.config.get("data.path", "")
        return [f"Shards {path!r}. Their sources are not recorded in the run's folder (data.json)."]
    splits = record.data["splits"]
    counts = _table(
        ("split", "documents", "words", "bytes of text", "tokens"),
        [
            (name, *(f"{of[key]:,}" for key in ("documents", "words", "text_bytes", "tokens")))
            for name, of in splits.items()
        ],
    )
    sources = _table(
        ("source", "documents", "bytes", "sha256"),
        [
            (Path(one["path"]).name, one["documents"], one["bytes"], one["sha256"][:16])
            for one in record.data["sources"]
        ],
    )
    dropped = ", ".join(f"{n:,} {why}" for why, n in record.data["dropped"].items() if n)
    return [*counts, "", *sources, "", f"Dropped documents: {dropped or 'none'}."]


def _training(record: RunRecord) -> list[str]:
    setup = record.setup
    environment = setup.get("environment", {})
    losses = record.points("loss")
    tokens = sum(value for _, value in record.points("tokens"))
    rows = [
        ("steps", f"{record.steps:,} of {record.config.get('train.steps', 'not recorded')}"),
        ("tokens that counted, in steps that were logged", f"{tokens:,.0f}"),
        ("epochs", number(setup.get("epochs"))),
        ("last training loss, nats", number(losses[-1][1]) if losses else _NONE),
        ("median tokens per second", number(record.median("tokens_per_second"))),
        ("starts", len(record.starts)),
        ("wall time of starts that ended", duration(record.wall) if record.wall else _NONE),
        ("devices", environment.get("devices", _NONE)),
        ("date", environment.get("date", _NONE)),
        *((name, environment[name]) for name in ("jax", "flax", "optax") if name in environment),
    ]
    return _table(("", "value"), rows)


def _evaluation(run: Path) -> list[str]:
    lines: list[str] = []
    for path in sorted({*run.glob("eval_*.json"), *run.glob("results.json")}):
        results = _read(path)
        lines += ["", f"`{path.name}`, step {results.get('step')}, split {results.get('split')}:"]
        lines += ["", *_models(results)]
    for pattern, show in _RESULTS.items():
        for path in sorted(run.glob(pattern)):
            lines += ["", *show(_read(path))]
    return lines[1:] if lines else ["Not measured: `llm-jax eval` writes what belongs here."]


def _models(results: Json) -> list[str]:
    """Figures of the model beside those of baselines."""
    of_name = results.items()
    models = {name: of for name, of in of_name if isinstance(of, dict) and "loss" in of}
    figures = [key for key in _FIGURES if any(key in of for of in models.values())]
    rows = [(name, *(number(of.get(key)) for key in figures)) for name, of in models.items()]
    return _table(("", *(key.replace("_", " ") for key in figures)), rows)


def _long_context(results: Json) -> list[str]:
    positions = _table(
        ("tokens before", "tokens", "loss, nats", "95 %"),
        [
            (
                f"{one['first']} to {one['last']}",
                f"{one['tokens']:,}",
                number(one["loss"]),
                f"{number(one['low'])} to {number(one['high'])}",
            )
            for one in results["positions"]
        ],
    )
    needles = _table(
        ("prompt, tokens", "fact at", "found"),
        [
            (one["length"], f"{one['depth']:.0%}", f"{one['found']} of {one['share']['items']}")
            for one in results["needles"]
        ],
    )
    return ["Loss by position:", "", *positions, "", "Facts found in long texts:", "", *needles]


def _memorization(results: Json) -> list[str]:
    rows = [
        (split, of["texts"], number(of["mean"]["value"]), of["longest"], f"{of['whole']:.1%}")
        for split, of in results["splits"].items()
    ]
    head = ("split", "texts", "tokens continued word for word", "longest", "whole")
    start = f"After {results['prompt']} tokens of a text, of the next {results['continuation']}:"
    return [start, "", *_table(head, rows)]


def _losses(results: Json) -> list[str]:
    rows = [
        ("documents", f"{results['documents']:,}"),
        ("loss, nats a token, 95 % over documents", _shown(results["loss"])),
        *((f"{n} % of documents below", number(v)) for n, v in results["percentiles"].items()),
    ]
    head = f"Losses of documents, step {results['step']}, split {results['split']}:"
    return [head, "", *_table(("", "value"), rows)]


_RESULTS: dict[str, Callable[[Json], list[str]]] = {
    "losses_*.json": _losses,
    "long_context.json": _long_context,
    "memorization.json": _memorization,
}


def _bias(run: Path) -> list[str]:
    lines: list[str] = []
    for name in ("bias.json", "toxicity.json"):
        path = run / name
        if path.is_file():
            shown = _table(("measure", "value"), _flat(_read(path)).items())
            lines += ["", f"`{name}`:", "", *shown]
    return lines[1:] if lines else ["Not measured."]


def _flat(values: Json, before: str = "") -> Json:
    found: Json = {}
    for name, value in values.items():
        if isinstance(value, dict) and not value.keys() >= {"value", "low", "high"}:
            found |= _flat(value, f"{before}{name}, ")
        else:
            found[f"{before}{name}"] = _shown(value)
    return found


def _shown(value: Any) -> Any:
    """A figure as text; one with an interval in one cell."""
    if isinstance(value, dict):
        between = f"{number(value['value'])} ({number(value['low'])} to {number(value['high'])})"
        return f"{between}, of {value['items']:,}" if "items" in value else between
    if value is None:
        return "not defined"
    return number(value) if isinstance(value, float) else value


def _cost(record: RunRecord, topology: str, assumed: Assumed) -> Cost | None:
    if not topology:
        if any(assumed):
            raise ConfigError(
                "price, pue or grid is given without a machine; name it with --topology"
            )
        return None
    target = parse_topology(topology, cpu_tflops=1.0)
    if not record.wall:
        return None
    tokens = max(1, round(sum(value for _, value in record.points("tokens"))))
    return cost(target, tokens, tokens, (record.wall, record.wall), assumed)


def _energy(spent: Cost | None, topology: str) -> list[str]:
    if spent is None and topology:
        return ["Not estimated: no start of the run has recorded its wall time."]
    if spent is None:
        return [
            "Not estimated: `llm-jax card --topology` with the machine of the training estimates"
            " both from the run's wall time."
        ]
    rows = [
        ("chip-hours", number(spent.chip_hours[0]), "wall time of starts that ended, times chips"),
        ("kWh", _between(spent.kwh), f"{spent.watts_source}; PUE {spent.pue}: {spent.pue_source}"),
        ("kg CO2e", _between(spent.kg_co2e), f"{spent.grid} {spent.grid_source}"),
    ]
    if spent.usd is None:
        rows.append(("USD", "not known", "no price of this chip; state one with --price"))
    else:
        rows.append(
            ("USD", number(spent.usd[0]), f"{spent.price} a chip-hour: {spent.price_source}")
        )
    return ["Estimates, not measurements:", "", *_table(("", "value", "from"), rows)]


def _between(values: tuple[float, float]) -> str:
    return f"{number(values[0])} to {number(values[1])}"


def _read(path: Path) -> Json:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(
            f"{str(path)!r} is not valid JSON ({error}); delete it or write it again"
        ) from error
