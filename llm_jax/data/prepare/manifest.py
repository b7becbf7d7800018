"""The manifest of a folder of shards, put together from the counts of its units."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from llm_jax.data.corpus.counts import ReadCounts
from llm_jax.data.corpus.dedup import SPLITS
from llm_jax.data.prepare.stages import DUPLICATE, EMPTY, TOO_LONG, TOO_SHORT

_TEXT_COUNTS = ("documents", "tokens", "blocks", "text_bytes", "words")
_PAIR_COUNTS = ("documents", "tokens", "encoder_tokens", "blocks", "text_bytes", "words")
_TEXT_RULES = (EMPTY, TOO_SHORT, DUPLICATE)
_PAIR_RULES = (*_TEXT_RULES, TOO_LONG)

Shards = dict[str, list[dict[str, Any]]]
"""What the manifest records of each shard file, by split."""


def make_manifest(
    plan: dict[str, Any],
    parts: Iterable[dict[str, Any]],
    counts: ReadCounts,
    dropped: Counter[str],
) -> dict[str, Any]:
    """The manifest.

    Args:
        plan: as ``resume.make_plan`` returns it.
        parts: counts of all units, sorted by file name.
        counts: what the reader has counted.
        dropped: documents dropped before they were tokenized, by rule.
    """
    options = plan["options"]
    parts = list(parts)
    for part in parts:
        dropped = dropped + Counter(part.get("dropped", {}))
    shards = _shards(parts)
    is_pairs = "encoder_block_size" in options
    names = _PAIR_COUNTS if is_pairs else _TEXT_COUNTS
    rules = _PAIR_RULES if is_pairs else _TEXT_RULES
    kind: dict[str, Any] = {}
    if is_pairs:
        kind = {"kind": "pairs", "encoder_block_size": options["encoder_block_size"]}
    return {
        **plan,
        **kind,
        "block_size": options["block_size"],
        "sources": [
            {**source, "documents": counts.documents.get(source["path"], 0)}
            for source in plan["sources"]
        ],
        "splits": {split: _totals(shards[split], names) for split in shards},
        "dropped": {rule: dropped[rule] for rule in rules},
        "read": {
            "empty_files": counts.empty,
            "invalid_utf8_repaired": counts.invalid_utf8,
            "nulls": counts.nulls,
        },
        "shards": shards,
    }


def _shards(parts: list[dict[str, Any]]) -> Shards:
    shards: Shards = {split: [] for split in SPLITS}
    for part in parts:
        shard = {name: value for name, value in part.items() if name not in ("split", "dropped")}
        shards[part["split"]].append(shard)
    # A shard in which no pair fits a row has a file all the same, because the numbers of the files
    # are consecutive. A split of such shards only is empty.
    return {
        split: kept if any(shard["blocks"] for shard in kept) else []
        for split, kept in shards.items()
    }


def _totals(shards: list[dict[str, Any]], names: Iterable[str]) -> dict[str, int]:
    return {name: sum(shard[name] for shard in shards) for name in names}
