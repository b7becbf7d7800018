"""Counts of the documents and bytes that were read."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class ReadCounts:
    """Counts of ``read_documents``, which updates them as it reads.

    Attributes:
        bytes_read: bytes consumed on disk, of all files.
        empty: files without a document.
        nulls: documents of .parquet and .jsonl with a null instead of a text, which is read as "".
        invalid_utf8: invalid sequences replaced by U+FFFD.
        documents: number of documents per source path.
    """

    bytes_read: int = 0
    empty: int = 0
    nulls: int = 0
    invalid_utf8: int = 0
    documents: dict[str, int] = field(default_factory=dict)
