"""Stages of preparing data: each maps a document to a document, or drops it and names the rule.

A stage is a callable ``document -> document | Drop(rule)``. All but ``DropDuplicates`` are pure
functions of one document with options that can be pickled, so that any engine can map them over a
corpus in any order. ``DropDuplicates`` remembers keys; an engine without shared memory groups the
documents by ``document_key`` and keeps the first of each group.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from llm_jax.data.corpus.clean import CleanOptions, clean
from llm_jax.data.corpus.dedup import Deduplicator, Keyed
from llm_jax.data.corpus.document import Document
from llm_jax.data.prepare.options import PrepareOptions
from llm_jax.data.shards.pairs import Pair

EMPTY = "empty"
TOO_SHORT = "too_short"
DUPLICATE = "duplicate"
TOO_LONG = "too_long"

T = TypeVar("T")


class Drop(NamedTuple):
    """What a stage returns for a document that it drops."""

    rule: str


Stage = Callable[[T], T | Drop]


@dataclass(frozen=True)
class Clean:
    """Cleans every text of a document; drops none."""

    options: CleanOptions

    def __call__(self, document: Document) -> Document:
        texts = tuple([clean(text, self.options) for text in document.texts])
        return Document(texts, document.source)


def drop_empty(document: Document) -> Document | Drop:
    """Drops a document in which a text is empty."""
    return document if all(document.texts) else Drop(EMPTY)


@dataclass(frozen=True)
class DropShort:
    """Drops a document in which a text has fewer characters than ``min_characters``."""

    min_characters: int

    def __call__(self, document: Document) -> Document | Drop:
        shortest = min(map(len, document.texts))
        return document if shortest >= self.min_characters else Drop(TOO_SHORT)


def document_stages(options: PrepareOptions) -> tuple[Stage[Document], ...]:
    """The stages before deduplication, in order.

    Raises:
        DataError: an option that a stage does not know.
    """
    return (Clean(options.cleaning), drop_empty, DropShort(options.min_characters))


class DropDuplicates:
    """Drops a document whose key has been seen; keeps the first document of each key.

    Args:
        everywhere: drop duplicates from all sources.
        held_out: sources whose duplicates are dropped in any case, because a held-out document
            must not be trained on.
    """

    def __init__(self, everywhere: bool, held_out: Iterable[str] = ()):
        self._everywhere = everywhere
        self._held_out = frozenset(held_out)
        self._seen = Deduplicator()

    def __call__(self, keyed: Keyed) -> Keyed | Drop:
        if self._seen.is_new(keyed.key):
            return keyed
        drops = self._everywhere or keyed.document.source in self._held_out
        return Drop(DUPLICATE) if drops else keyed


@dataclass(frozen=True)
class DropUnfit:
    """Drops a tokenized pair of which a side does not fit a row, or the encoder's side is empty.

    Args:
        encoder_length: tokens that an encoder reads in a row.
        length: tokens that a decoder writes in a row.
    """

    encoder_length: int
    length: int

    def __call__(self, pair: Pair) -> Pair | Drop:
        if not len(pair.encoder_tokens):
            return Drop(EMPTY)
        fits = len(pair.encoder_tokens) <= self.encoder_length and len(pair.tokens) <= self.length
        return pair if fits else Drop(TOO_LONG)


def apply_stages(document: T, stages: Iterable[Stage[T]]) -> T | Drop:
    """The document after every stage, or the drop of the first stage that drops it."""
    for stage in stages:
        outcome = stage(document)
        if isinstance(outcome, Drop):
            return outcome
        document = outcome
    return document


def run_stages(
    documents: Iterable[T], stages: Iterable[Stage[T]], dropped: Counter[str]
) -> Iterator[T]:
    """The documents that every stage keeps, in their order.

    Args:
        documents: what the first stage takes.
        stages: applied in order; a document that one drops does not reach the next.
        dropped: incremented as documents are dropped, by rule.
    """
    stages = tuple(stages)
    for document in documents:
        outcome = apply_stages(document, stages)
        if isinstance(outcome, Drop):
            dropped[outcome.rule] += 1
        else:
            yield outcome
