"""A folder of shards as text: counts, packing, and rows with the borders of documents."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from llm_jax.data.shards.pairs import PairRows
from llm_jax.data.shards.rows import Rows
from llm_jax.data.shards.store import kind_of_shards, read_manifest
from llm_jax.ranges import Count, Natural, checked
from llm_jax.storage.paths import path_of
from llm_jax.tokenizers.open_tokenizer import open_tokenizer
from llm_jax.tokenizers.tokenizer import Tokenizer
from llm_jax.types import DataError

_SAMPLE_ROWS = 512


@checked
def inspect_shards(
    path: Path, rows: Natural = 2, seq_length: Count | None = None, split: str = "train"
) -> str:
    """Describe a folder of shards.

    Args:
        path: folder written by data prepare.
        rows: how many rows to show as text.
        seq_length: length of the rows; None for the block size.
        split: which split the rows come from.

    Returns:
        Text of several lines: counts of each split, dropped documents, packing, and decoded rows.
        ``⟦1⟧ … ⟦2⟧`` mark where segments begin, ``<s>`` and ``</s>`` are shown, ``·pad×7`` is seven
        tokens of padding.

    Raises:
        DataError: the folder holds no shards, or none with this split or seq_length.
    """
    path = path_of(path)
    manifest = read_manifest(path)
    block_size = manifest["block_size"]
    length = block_size if seq_length is None else seq_length
    if kind_of_shards(manifest) == "pairs":
        if length != block_size:
            raise DataError(
                f"seq_length={length}, and the pairs of {str(path)!r} are packed into rows of "
                f"{block_size} tokens; leave out seq_length (--seq-length)"
            )
        opened: Rows | PairRows = PairRows(
            path, split, length, encoder_length=manifest["encoder_block_size"], start_token=0
        )
    else:
        opened = Rows(path, split, length)
    tokenizer = open_tokenizer(path / "tokenizer")
    lines = [*_counts(path, manifest), *_packing(opened, split)]
    for row in range(min(rows, len(opened))):
        lines += _row(opened, row, tokenizer)
    return "\n".join(lines)


def _counts(path: Path, manifest: dict[str, Any]) -> list[str]:
    tokenizer = manifest["tokenizer"]
    read = manifest["read"]
    source_bytes = sum(source["bytes"] for source in manifest["sources"])
    dropped = (f"{rule.replace('_', ' ')} {n:,}" for rule, n in manifest["dropped"].items())
    return [
        f"{path}: blocks of {manifest['block_size']} tokens",
        f"tokenizer: {tokenizer['vocab_size']:,} tokens, fingerprint"
        f" {tokenizer['fingerprint'][:16]}…",
        f"sources: {len(manifest['sources'])} files, {source_bytes:,} bytes",
        "",
        f"{'split':<12}{'documents':>12}{'tokens':>16}{'blocks':>10}"
        f"{'text bytes':>16}{'tokens/doc':>12}{'bytes/token':>13}",
        *(_split_line(name, counts) for name, counts in manifest["splits"].items()),
        "",
        f"dropped documents: {', '.join(dropped)}",
        f"empty files: {read['empty_files']:,}; nulls: {read.get('nulls', 0):,}; "
        f"invalid UTF-8 repaired: {read['invalid_utf8_repaired']:,}",
    ]


def _split_line(name: str, counts: dict[str, int]) -> str:
    per_document = counts["tokens"] / max(counts["documents"], 1)
    per_token = counts["text_bytes"] / max(counts["tokens"], 1)
    return (
        f"{name:<12}{counts['documents']:>12,}{counts['tokens']:>16,}{counts['blocks']:>10,}"
        f"{counts['text_bytes']:>16,}{per_document:>12.1f}{per_token:>13.2f}"
    )


def _packing(rows: Rows | PairRows, split: str) -> list[str]:
    """Statistics of a sample of rows, spread evenly over the split."""
    picked = np.unique(np.linspace(0, len(rows) - 1, min(_SAMPLE_ROWS, len(rows))).astype(int))
    batch = rows.batch(picked)
    documents = batch.inputs.segment_ids.max(axis=1).mean()
    padding = (batch.inputs.segment_ids == 0).mean()
    return [
        f"{split} rows of {rows.seq_length} tokens: {len(rows):,}; of {len(picked)} looked at:"
        f" {documents:.1f} documents per row, {padding:.2%} padding, {batch.loss_mask.mean():.2%}"
        " of positions count in the loss"
    ]


def _row(rows: Rows | PairRows, row: int, tokenizer: Tokenizer) -> list[str]:
    batch = rows.batch([row])
    head = f"--- row {row}: {int(batch.inputs.segment_ids.max())} segments ---"
    if batch.encoder is None:
        return ["", head, *_segments(batch.inputs.ids[0], batch.inputs.segment_ids[0], tokenizer)]
    reads = _segments(batch.encoder.ids[0], batch.encoder.segment_ids[0], tokenizer)
    writes = _segments(batch.targets[0], batch.inputs.segment_ids[0], tokenizer)
    return ["", head, "- what an encoder reads", *reads, "- what a decoder writes", *writes]


def _segments(tokens: np.ndarray, segments: np.ndarray, tokenizer: Tokenizer) -> list[str]:
    parts = []
    for segment in range(1, int(segments.max()) + 1):
        ids = tokens[segments == segment].tolist()
        opens = tokenizer.is_control(ids[0])
        closes = tokenizer.is_control(ids[-1]) and len(ids) > 1
        opening = tokenizer.piece(ids[0]) if opens else "…"
        closing = tokenizer.piece(ids[-1]) if closes else "…"
        parts.append(f"⟦{segment}⟧{opening}{tokenizer.decode(ids)}{closing}")
    padding = int((segments == 0).sum())
    if padding:
        parts.append(f"·pad×{padding}")
    return parts
