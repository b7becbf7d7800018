"""Units of work: the documents of one shard file, and the record that the unit is finished."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from llm_jax.data.corpus.counts import ReadCounts
from llm_jax.data.corpus.dedup import SPLITS, Assigned
from llm_jax.data.shards.store import shard_name

PARTS = "parts"


class Unit(NamedTuple):
    """Documents that become one shard file.

    Attributes:
        split: ``"train"`` or ``"validation"``.
        shard_index: number of the shard in its split.
        texts: the texts of each document.
        bytes_read: bytes of the sources read since the unit before it was complete.
    """

    split: str
    shard_index: int
    texts: list[tuple[str, ...]]
    bytes_read: int

    @property
    def file_name(self) -> str:
        """Name of the shard file."""
        return shard_name(self.split, self.shard_index)


def part_path(out: Path, unit: Unit) -> Path:
    """The file that holds the counts of a unit; the unit is finished where it exists."""
    return out / PARTS / f"{unit.file_name}.json"


def cut_units(
    documents: Iterable[Assigned], shard_bytes: int, counts: ReadCounts
) -> Iterator[Unit]:
    """Cut each split into units of at least ``shard_bytes`` of text; the last is what remains.

    Args:
        documents: in the order of the corpus.
        shard_bytes: a unit ends with the document by which it has so many bytes of UTF-8.
        counts: of the reader that the documents come from; says how far it has read.
    """
    texts: dict[str, list[tuple[str, ...]]] = {split: [] for split in SPLITS}
    size = dict.fromkeys(SPLITS, 0)
    index = dict.fromkeys(SPLITS, 0)
    read = 0
    for document, split in documents:
        texts[split].append(document.texts)
        size[split] += sum(map(_utf8_length, document.texts))
        if size[split] >= shard_bytes:
            yield Unit(split, index[split], texts[split], counts.bytes_read - read)
            read = counts.bytes_read
            texts[split] = []
            size[split] = 0
            index[split] += 1
    for split in SPLITS:
        if texts[split]:
            yield Unit(split, index[split], texts[split], counts.bytes_read - read)
            read = counts.bytes_read


def _utf8_length(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())
