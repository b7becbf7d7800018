"""What reading has seen so far."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class ReadCounts:
    """What ``read_documents`` has seen so far; it updates the object it is given.

    bytes_read: bytes consumed on disk, of all files.
    empty: files that held no document.
    nulls: documents with a null instead of a text, in .parquet and .jsonl; they are read as "".
    invalid_utf8: invalid sequences replaced by U+FFFD.
    documents: number of documents per source path.
    """

    bytes_read: int = 0
    empty: int = 0
    nulls: int = 0
    invalid_utf8: int = 0
    documents: dict[str, int] = field(default_factory=dict)
