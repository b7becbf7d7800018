"""Exact deduplication of documents by key, and the train/validation split by the same key."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from llm_jax.data.corpus.document import Document
from llm_jax.types import DataError

SPLITS = ("train", "validation")


class Keyed(NamedTuple):
    """A document with its key."""

    document: Document
    key: bytes


class Assigned(NamedTuple):
    """A document with its split."""

    document: Document
    split: str


def document_key(document: Document) -> bytes:
    """128-bit hash of the texts of a document: equal texts have equal keys."""
    first, *others = document.texts
    # The length separates ("ab", "c") from ("a", "bc").
    text = f"{len(first)}\n{first}{''.join(others)}" if others else first
    return hashlib.blake2b(text.encode("utf-8"), digest_size=16).digest()


def with_key(document: Document) -> Keyed:
    """The document with its ``document_key``."""
    return Keyed(document, document_key(document))


class Deduplicator:
    """Remembers the keys that it has seen, in about 100 bytes of memory each."""

    def __init__(self) -> None:
        self._seen: set[bytes] = set()

    def is_new(self, key: bytes) -> bool:
        """Whether the key is given for the first time."""
        before = len(self._seen)
        self._seen.add(key)
        return len(self._seen) > before


def split_of(key: bytes, validation_fraction: float) -> str:
    """The split of a document: a function of its key alone.

    Args:
        key: as ``document_key`` returns it.
        validation_fraction: share of all keys that are held out.

    Returns:
        ``"train"`` or ``"validation"``.

    Raises:
        DataError: ``validation_fraction`` is not in [0, 1).
    """
    if not 0 <= validation_fraction < 1:
        raise DataError(
            f"validation_fraction={validation_fraction}; it must be at least 0 and below 1"
        )
    held_out = int.from_bytes(key[:8], "big") < validation_fraction * 2**64
    return "validation" if held_out else "train"


def assign_splits(documents: Iterable[Keyed], validation_fraction: float) -> Iterator[Assigned]:
    """Assign each document its split, so that no split is empty where there are two documents.

    While all documents so far belong to one split, the one nearest the border (the smallest key of
    the train split, the largest of the validation split) is held back. If the other split stays
    empty to the end, the document that is held back goes there. The result depends on the documents
    and their order only.

    Args:
        documents: documents with their keys.
        validation_fraction: share of all keys that are held out; with 0 all documents are train.

    Raises:
        DataError: ``validation_fraction`` is not in [0, 1).
    """
    held: Assigned | None = None
    held_key = b""
    count = 0
    both_seen = False
    for document, key in documents:
        count += 1
        new = Assigned(document, split_of(key, validation_fraction))
        both_seen = both_seen or (held is not None and new.split != held.split)
        if both_seen or validation_fraction == 0:
            if held is not None:
                yield held
                held = None
            yield new
        elif held is None:
            held = new
            held_key = key
        elif _is_nearer(key, held_key, new.split):
            yield held
            held = new
            held_key = key
        else:
            yield new
    if held is not None:
        other = SPLITS[1 - SPLITS.index(held.split)]
        yield Assigned(held.document, "train" if count == 1 else other)


def _is_nearer(key: bytes, other: bytes, split: str) -> bool:
    """Whether ``key`` is nearer the border between the splits than ``other`` of the same split."""
    return key < other if split == "train" else key > other
