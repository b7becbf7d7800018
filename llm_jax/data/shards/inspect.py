"""Looking into a folder of shards: counts, packing, and rows as text with the borders of documents
shown.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from llm_jax.data.shards.pairs import PairRows
from llm_jax.data.shards.rows import Rows
from llm_jax.data.shards.store import kind_of_shards, read_manifest
from llm_jax.ranges import Count, Natural, checked
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

    Raises:
        DataError: no shards there, or rows or a seq_length that they do not have.

    Returns:
        Text of several lines: counts per split, what was dropped, packing, and decoded rows. ``⟦1⟧
        … ⟦2⟧`` mark where segments begin, ``<s>`` and ``</s>`` are shown, ``·pad×7`` stands for
        padding.
    """
    path = Path(path)
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
            path, split, length, manifest["encoder_block_size"], start_token=0
        )
    else:
        opened = Rows(path, split, length)
    tokenizer = open_tokenizer(path / "tokenizer")
    lines = [*_counts(path, manifest), *_packing(opened, split)]
    return "\n".join(
        [
            *lines,
            *(
                line
                for row in range(min(rows, len(opened)))
                for line in _row(opened, row, tokenizer)
            ),
        ]
    )


def _counts(path: Path, manifest: dict) -> list[str]:
    tokenizer, dropped, read = manifest["tokenizer"], manifest["dropped"], manifest["read"]
    lines = [
        f"{path}: blocks of {manifest['block_size']} tokens",
        (
            f"tokenizer: {tokenizer['vocab_size']:,} tokens, fingerprint"
            f" {tokenizer['fingerprint'][:16]}…"
        ),
        (
            f"sources: {len(manifest['sources'])} files,"
            f" {sum(s['bytes'] for s in manifest['sources']):,} bytes"
        ),
        "",
        (
            f"{'split':<12}{'documents':>12}{'tokens':>16}{'blocks':>10}"
            f"{'text bytes':>16}{'tokens/doc':>12}{'bytes/token':>13}"
        ),
    ]
    for name, n in manifest["splits"].items():
        per_document, per_token = (
            n["tokens"] / max(n["documents"], 1),
            n["text_bytes"] / max(n["tokens"], 1),
        )
        lines.append(
            f"{name:<12}{n['documents']:>12,}{n['tokens']:>16,}{n['blocks']:>10,}{n['text_bytes']:>16,}{per_document:>12.1f}{per_token:>13.2f}"
        )
    lines += [
        "",
        "dropped documents: "
        + ", ".join(f"{reason.replace('_', ' ')} {n:,}" for reason, n in dropped.items()),
    ]
    return [
        *lines,
        (
            f"empty files: {read['empty_files']:,}; nulls: {read.get('nulls', 0):,}; "
            f"invalid UTF-8 repaired: {read['invalid_utf8_repaired']:,}"
        ),
    ]


def _packing(rows: Rows | PairRows, split: str) -> list[str]:
    """Figures over rows spread evenly over the split."""
    picked = np.unique(np.linspace(0, len(rows) - 1, min(_SAMPLE_ROWS, len(rows))).astype(int))
    batch = rows.batch(picked)
    documents, padding = batch.segment_ids.max(axis=1).mean(), (batch.segment_ids == 0).mean()
    return [
        f"{split} rows of {rows.seq_length} tokens: {len(rows):,}; of {len(picked)} looked at:"
        f" {documents:.1f} documents per row, {padding:.2%} padding, {batch.loss_mask.mean():.2%}"
        " of positions count in the loss"
    ]


def _row(rows: Rows | PairRows, row: int, tokenizer: Tokenizer) -> list[str]:
    batch = rows.batch([row])
    head = f"--- row {row}: {int(batch.segment_ids.max())} segments ---"
    if batch.encoder_tokens is None:
        return ["", head, *_segments(batch.tokens[0], batch.segment_ids[0], tokenizer)]
    reads = _segments(batch.encoder_tokens[0], batch.encoder_segment_ids[0], tokenizer)
    writes = _segments(batch.targets[0], batch.segment_ids[0], tokenizer)
    return ["", head, "- what an encoder reads", *reads, "- what a decoder writes", *writes]


def _segments(tokens: np.ndarray, segments: np.ndarray, tokenizer: Tokenizer) -> list[str]:
    parts = []
    for segment in range(1, int(segments.max()) + 1):
        ids = tokens[segments == segment].tolist()
        opening = tokenizer.piece(ids[0]) if tokenizer.is_control(ids[0]) else "…"
        closing = (
            tokenizer.piece(ids[-1]) if tokenizer.is_control(ids[-1]) and len(ids) > 1 else "…"
        )
        parts.append(f"⟦{segment}⟧{opening}{tokenizer.decode(ids)}{closing}")
    if padding := int((segments == 0).sum()):
        parts.append(f"·pad×{padding}")
    return parts
