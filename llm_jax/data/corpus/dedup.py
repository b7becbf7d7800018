"""Exact deduplication of documents, and the train/validation split by document hash."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from llm_jax.types import DataError

SPLITS = ("train", "validation")


class Hashed(NamedTuple):
    """A document, one text or a pair of them, with its hash and its split."""

    texts: tuple[str, ...]
    source: str
    digest: bytes
    split: str


def digest(texts: tuple[str, ...]) -> bytes:
    """128-bit hash of a document: equal texts are equal documents."""
    # The length keeps apart pairs whose texts are the same one after the other.
    text = texts[0] if len(texts) == 1 else f"{len(texts[0])}\n{''.join(texts)}"
    return hashlib.blake2b(text.encode("utf-8"), digest_size=16).digest()


class Deduplicator:
    """Remembers the hashes seen (about 100 bytes of memory a document) and keeps the first document
    of each.
    """

    def __init__(self) -> None:
        self._seen: set[bytes] = set()

    def is_new(self, digest: bytes) -> bool:
        """True the first time a hash is given."""
        before = len(self._seen)
        self._seen.add(digest)
        return len(self._seen) > before


def split_of(digest: bytes, validation_fraction: float) -> str:
    """``"train"`` or ``"validation"``: a function of the document's hash alone, whatever the order
    and the other documents.
    """
    if not 0 <= validation_fraction < 1:
        raise DataError(
            f"validation_fraction={validation_fraction}; it must be at least 0 and below 1"
        )
    return (
        "validation" if int.from_bytes(digest[:8], "big") < validation_fraction * 2**64 else "train"
    )


def assign_splits(
    documents: Iterable[tuple[tuple[str, ...], str, bytes]], validation_fraction: float
) -> Iterator[Hashed]:
    """Give each ``(texts, source, digest)`` its split, so that neither split is empty where there
    are two documents or more.

    While only one split has been seen, the document nearest the border (smallest hash for
    validation) is held back; if the other split stays empty to the end, that document goes there.
    The outcome depends on the documents and their order only.
    """
    held: Hashed | None = None
    seen: set[str] = set()
    number = 0
    for texts, source, key in documents:
        number += 1
        document = Hashed(texts, source, key, split_of(key, validation_fraction))
        seen.add(document.split)
        if len(seen) == 2 or validation_fraction == 0:
            if held is not None:
                yield held
                held = None
            yield document
        elif held is None:
            held = document
        else:
            nearer = (
                document.digest < held.digest
                if document.split == "train"
                else document.digest > held.digest
            )
            held, out = (document, held) if nearer else (held, document)
            yield out
    if held is not None:
        lone = "train" if number == 1 else SPLITS[1 - SPLITS.index(held.split)]
        yield held._replace(split=lone)
