"""Which page of a paged cache belongs to which row: the host's half of ``ops.cache.paged``.

A ``PagePool`` knows no token and no device. It counts how many rows have a page, gives out free
ones, and says which pages to copy before a row may write: a page of several rows is never written
to. Its tables and copies go to the device with ``Cache.planned``. Each method takes time in
proportion to the pages of the rows that it is given.

On a mesh whose devices have rows of their own there is one pool for the rows of each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from llm_jax.types import ConfigError


class OutOfPages(ConfigError):
    """A row needs more pages than are free. Nothing was changed."""


class Copies(NamedTuple):
    """Pages to copy before rows are written to; all are read before one is written.

    Attributes:
        source: int32 [n].
        target: int32 [n], where to.
    """

    source: np.ndarray
    target: np.ndarray

    def padded(self, width: int, pages: int) -> Copies:
        """The same in ``width`` places, so that one compiled program takes plans of any number.

        Args:
            width: at least n.
            pages: of the pool; a copy to the page of this number is none.
        """
        missing = width - len(self.source)
        if missing < 0:
            raise ConfigError(f"{len(self.source)} copies do not fit {width} places; give more")
        source = np.pad(self.source, (0, missing))
        target = np.pad(self.target, (0, missing), constant_values=pages)
        return Copies(source, target)


@dataclass
class _Row:
    """Pages of a row, for its tokens in order, and how many tokens it has."""

    pages: list[int] = field(default_factory=list)
    length: int = 0


class PagePool:
    """The pages of one pool and the rows that have them."""

    def __init__(self, pages: int, size: int) -> None:
        """
        Args:
            pages: P, of the pool.
            size: tokens of a page.

        Raises:
            ConfigError: either is less than 1.
        """
        if pages < 1 or size < 1:
            raise ConfigError(f"a pool of {pages} pages of {size} tokens: both must be at least 1")
        self.pages = pages
        self.size = size
        self._free = list(range(pages - 1, -1, -1))
        self._rows_with = np.zeros(pages, np.int32)
        self._rows: dict[int, _Row] = {}
        self._next = 0

    @property
    def free(self) -> int:
        """Pages that no row has."""
        return len(self._free)

    def pages_of(self, length: int) -> int:
        """Pages of a row of ``length`` tokens."""
        return -(-length // self.size)

    def length(self, row: int) -> int:
        """Tokens of a row."""
        return self._row(row).length

    def add(self, length: int) -> int:
        """A new row with pages of its own for ``length`` tokens; returns its number.

        Raises:
            OutOfPages: there are not as many.
        """
        pages = self._taken(self.pages_of(length), "a new row", length)
        return self._new(_Row(pages, length))

    def share(self, row: int, length: int | None = None) -> int:
        """A new row that begins with the first ``length`` tokens of ``row``; returns its number.

        Both have the same pages from then on. None is all tokens of the row.

        Raises:
            ConfigError: the row has fewer tokens.
        """
        old = self._row(row)
        length = old.length if length is None else length
        if not 0 <= length <= old.length:
            raise ConfigError(
                f"row {row} has {old.length} tokens, of which {length} are to be shared"
            )
        pages = old.pages[: self.pages_of(length)]
        self._rows_with[pages] += 1
        return self._new(_Row(list(pages), length))

    def grow(self, row: int, length: int) -> Copies:
        """Gives a row pages to write its tokens up to ``length`` to, which are its own.

        Returns:
            What to copy first: the page that it goes on in, where another row has it too.

        Raises:
            OutOfPages: there are not enough; the row stays as it was.
            ConfigError: the row is longer already.
        """
        here = self._row(row)
        if length < here.length:
            raise ConfigError(
                f"row {row} has {here.length} tokens, more than {length}; truncate it"
            )
        first = here.length // self.size
        written = here.pages[first:] if length > here.length else []
        shared = [page for page in written if self._rows_with[page] > 1]
        missing = self.pages_of(length) - len(here.pages)
        taken = self._taken(missing + len(shared), f"row {row}", length)
        for place, page in enumerate(shared, len(here.pages) - len(written)):
            here.pages[place] = taken.pop()
            self._rows_with[page] -= 1
        copies = Copies(_numbers(shared), _numbers(here.pages[first : first + len(shared)]))
        here.pages += taken
        here.length = length
        return copies

    def truncate(self, row: int, length: int) -> list[int]:
        """Takes back the tokens of a row after the first ``length``.

        Returns:
            The pages that are free now. A row that is not longer stays as it is.

        Raises:
            ConfigError: the length is negative.
        """
        here = self._row(row)
        if length < 0:
            raise ConfigError(f"row {row} cannot be cut to {length} tokens; the least is 0")
        if length >= here.length:
            return []
        kept = self.pages_of(length)
        given_back = here.pages[kept:]
        del here.pages[kept:]
        here.length = length
        return self._given_back(given_back)

    def release(self, row: int) -> list[int]:
        """Ends a row; returns the pages that are free now."""
        pages = self._row(row).pages
        del self._rows[row]
        return self._given_back(pages)

    def table(self, rows: Sequence[int], entries: int) -> np.ndarray:
        """The table of a cache: int32 [B, entries], -1 where a row has no page.

        Raises:
            ConfigError: a row has more pages than there are entries.
        """
        table = np.full((len(rows), entries), -1, np.int32)
        for place, row in enumerate(rows):
            pages = self._row(row).pages
            if len(pages) > entries:
                raise ConfigError(
                    f"row {row} has {len(pages)} pages, and the table {entries} entries a row; make"
                    " the cache longer"
                )
            table[place, : len(pages)] = pages
        return table

    def _row(self, row: int) -> _Row:
        if row not in self._rows:
            raise ConfigError(f"row {row} is not in the pool: it was released, or never added")
        return self._rows[row]

    def _new(self, row: _Row) -> int:
        number = self._next
        self._rows[number] = row
        self._next += 1
        return number

    def _taken(self, count: int, who: str, length: int) -> list[int]:
        """Free pages, which one row has from now on."""
        if count > len(self._free):
            raise OutOfPages(
                f"{who} needs {count} pages for {length} tokens, and {len(self._free)} of"
                f" {self.pages} pages of {self.size} tokens are free; make the cache with more"
                " pages, or release rows"
            )
        taken = [self._free.pop() for _ in range(count)]
        self._rows_with[taken] += 1
        return taken

    def _given_back(self, pages: list[int]) -> list[int]:
        self._rows_with[pages] -= 1
        freed = [page for page in pages if not self._rows_with[page]]
        self._free += freed
        return freed


class SamplePlan(NamedTuple):
    """Pages for several samples of each prompt, which share the pages of the prompt.

    Attributes:
        pages: of the pool.
        prompts: int32 [B, entries], the table while the prompts are read.
        rows: int32 [B·n], the prompt of each sample.
        table: int32 [B·n, entries], the table afterwards.
        copies: what to copy in between.
    """

    pages: int
    prompts: np.ndarray
    rows: np.ndarray
    table: np.ndarray
    copies: Copies


def plan_samples(lengths: Sequence[int], samples: int, room: int, size: int) -> SamplePlan:
    """Plans ``samples`` rows of each prompt in as few pages as they need.

    Args:
        lengths: tokens of each prompt.
        samples: n.
        room: tokens of a row, prompt and what is written to it.
        size: tokens of a page.

    Raises:
        ConfigError: a prompt is longer than ``room``.
    """
    longest = max(lengths, default=0)
    if longest > room:
        raise ConfigError(
            f"a prompt of {longest} tokens does not fit rows of {room}; give more room"
        )
    entries = -(-room // size)
    pages = sum(samples * entries - (samples - 1) * (n // size) for n in lengths)
    pool = PagePool(pages, size)
    prompts = [pool.add(n) for n in lengths]
    before = pool.table(prompts, entries)
    # All are shared before one grows: the last one keeps the prompt's own page.
    rows = [[row, *(pool.share(row) for _ in range(samples - 1))] for row in prompts]
    every = [row for of_prompt in rows for row in of_prompt]
    copies = [pool.grow(row, room) for row in every]
    joined = Copies(*(np.concatenate(part) for part in zip(*copies, strict=True)))
    of_prompt = np.repeat(np.arange(len(lengths), dtype=np.int32), samples)
    return SamplePlan(pages, before, of_prompt, pool.table(every, entries), joined)


def _numbers(pages: Sequence[int]) -> np.ndarray:
    return np.array(pages, np.int32)
