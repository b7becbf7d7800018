"""A document: what the readers of a corpus yield and what the stages of ``prepare`` take."""

from __future__ import annotations

from typing import NamedTuple


class Document(NamedTuple):
    """One document of a corpus.

    Attributes:
        texts: one text; of a pair, what a decoder writes and then what an encoder reads.
        source: path of the file that it comes from.
    """

    texts: tuple[str, ...]
    source: str

    @property
    def text(self) -> str:
        """The text; of a pair, what a decoder writes."""
        return self.texts[0]
