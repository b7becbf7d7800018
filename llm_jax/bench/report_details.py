"""The report's details: the data card, the resolved config, and the environment."""

from __future__ import annotations

from typing import Any

from llm_jax.bench.page import Html, compact, missing, number, section, table, tag, value_text
from llm_jax.bench.run_files import Json, RunRecord
from llm_jax.config import Config
from llm_jax.config.sections import settings as settings_of

_SOURCES_SHOWN = 20
_SPLIT_COLUMNS = ("documents", "tokens", "blocks", "words", "text_bytes")
_TOKENIZER_FACTS = {
    "vocabulary": "vocab_size",
    "special tokens": "special_ids",
    "fingerprint": "fingerprint",
}


def data_card(run: RunRecord) -> Html:
    """Sources, splits, dropped documents, cleaning and tokenizer."""
    data = run.data
    if data is None:
        return missing("Data card", "Not made: the folder has no data.json.")
    tokenizer = data.get("tokenizer") or {}
    layout = {**data.get("options", {}), "block_size": data.get("block_size")}
    columns = [
        pairs("Dropped and repaired", {**data.get("dropped", {}), **data.get("read", {})}),
        pairs("Tokenizer", {name: tokenizer.get(key) for name, key in _TOKENIZER_FACTS.items()}),
        pairs("Cleaning and layout", layout),
    ]
    return section(
        "Data card",
        tag("h3", "Sources"),
        _sources(data.get("sources") or []),
        tag("h3", "Splits"),
        _splits(data.get("splits") or {}),
        tag("div", *columns, class_="columns"),
    )


def _sources(sources: list[Json]) -> Html:
    rows = [_source_row(tag("code", s.get("path")), [s]) for s in sources[:_SOURCES_SHOWN]]
    more = sources[_SOURCES_SHOWN:]
    if more:
        rows.append(_source_row(f"and {len(more):,} more", more))
    if len(sources) > 1:
        rows.append(_source_row(tag("b", "all"), sources))
    return table(("file", "size", "documents"), rows, (1, 2))


def _source_row(name: Any, sources: list[Json]) -> tuple[Any, str, str]:
    size = sum(s.get("bytes", 0) for s in sources)
    documents = sum(s.get("documents", 0) for s in sources)
    return name, compact(size, "B"), f"{documents:,}"


def _splits(splits: Json) -> Html:
    rows = []
    for name, split in splits.items():
        bytes_per_token = split.get("text_bytes", 0) / (split.get("tokens") or 1)
        values = (value_text(split.get(column)) for column in _SPLIT_COLUMNS)
        rows.append((name, *values, number(bytes_per_token)))
    head = ("", *(column.replace("_", " ") for column in _SPLIT_COLUMNS), "bytes per token")
    return table(head, rows, range(1, 7))


def settings(run: RunRecord) -> Html:
    """The resolved config by section, folded; values that differ from the defaults are bold."""
    known = settings_of(Config)
    sections: dict[str, Json] = {}
    defaults: dict[str, Json] = {}
    for key, value in run.config.items():
        section, _, name = key.partition(".") if "." in key else ("run", "", key)
        sections.setdefault(section, {})[name] = value
        # A setting that another version had has no default here, and is not marked.
        default = _as_json(known[key][0].default) if key in known else value
        defaults.setdefault(section, {})[name] = default
    tables = [pairs(name, found, defaults[name]) for name, found in sections.items()]
    fold = tag(
        "details",
        tag("summary", tag("h2", "Resolved config")),
        tag("p", "Bold: other than the default.", class_="remark"),
        tag("div", *tables, class_="columns"),
    )
    return tag("section", fold)


def _as_json(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def environment(run: RunRecord) -> Html:
    """The machine, its libraries, and the values derived from the config."""
    if not run.setup:
        return missing("Environment", "Not recorded: metrics.jsonl has no setup record.")
    machine = run.setup.get("environment") or {}
    derived = {k: v for k, v in run.setup.items() if k != "environment"}
    tables = [pairs("Machine and libraries", machine), pairs("Derived values", derived)]
    return section("Environment", tag("div", *tables, class_="columns"))


def pairs(title: str, values: Json, defaults: Json | None = None) -> Html:
    """A titled table of names and values; empty where there are none.

    Where ``defaults`` are given, values that differ from them are bold.
    """
    rows = []
    for key, value in values.items():
        changed = defaults is not None and value != defaults.get(key)
        text = value_text(value)
        rows.append((key.replace("_", " "), tag("b", text) if changed else text))
    return tag("div", tag("h3", title), table((), rows)) if rows else Html("")
