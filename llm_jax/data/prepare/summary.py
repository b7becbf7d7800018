"""The counts of a prepared folder in one or two lines of text."""

from __future__ import annotations

from typing import Any


def summary(manifest: dict[str, Any]) -> list[str]:
    """One line about documents read and kept; a second about those dropped or repaired, if any.

    Args:
        manifest: of a folder of shards. Counts that an older manifest does not have are 0.
    """
    read = sum(source["documents"] for source in manifest["sources"])
    kept = "; ".join(_kept(split, counts) for split, counts in manifest["splits"].items())
    changed = "; ".join(filter(None, (_dropped(manifest), *_repaired(manifest["read"]))))
    lines = [f"{_number(read, 'document')} read: {kept}"]
    return [*lines, changed] if changed else lines


def _kept(split: str, counts: dict[str, int]) -> str:
    documents = _number(counts["documents"], "document")
    text = f"{split} {documents}, {_number(counts['tokens'], 'token')}"
    encoder_tokens = counts.get("encoder_tokens")
    if encoder_tokens is None:
        return text
    return f"{text} and {_number(encoder_tokens, 'token')} for the encoder"


def _dropped(manifest: dict[str, Any]) -> str:
    counts = {reason: n for reason, n in manifest["dropped"].items() if n}
    if not counts:
        return ""
    reasons = {reason: f"{reason.replace('_', ' ')} {n:,}" for reason, n in counts.items()}
    nulls = manifest["read"].get("nulls", 0)
    if nulls:
        reasons["empty"] += f" ({nulls:,} of them null)"
    return f"dropped {_number(sum(counts.values()), 'document')}: {', '.join(reasons.values())}"


def _repaired(read: dict[str, int]) -> list[str]:
    lines = []
    if read["invalid_utf8_repaired"]:
        lines.append(f"repaired {_number(read['invalid_utf8_repaired'], 'invalid UTF-8 sequence')}")
    if read["empty_files"]:
        lines.append(f"skipped {_number(read['empty_files'], 'empty file')}")
    return lines


def _number(n: int, thing: str) -> str:
    return f"{n:,} {thing}" if n == 1 else f"{n:,} {thing}s"
