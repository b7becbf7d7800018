"""Word vectors: nearest words, analogies, and the file formats of word2vec."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO

import numpy as np

from llm_jax.files import write_atomic
from llm_jax.ranges import Count, checked
from llm_jax.storage.paths import path_of
from llm_jax.types import DataError

Ranked = list[tuple[str, float]]
_ROWS = 256


@dataclasses.dataclass(frozen=True, eq=False)
class Vectors:
    """Vectors of words.

    Attributes:
        words: all different; of trained vectors the most frequent first.
        values: float32 [V, D].
        counts: int64 [V], occurrences of each word; None where they are not known, as in files.
    """

    words: tuple[str, ...]
    values: np.ndarray
    counts: np.ndarray | None = None

    def __post_init__(self) -> None:
        """Raises DataError for words that are there twice, or vectors that do not fit them."""
        if self.values.ndim != 2 or len(self.values) != len(self.words) or not len(self.words):
            raise DataError(
                f"there are vectors of shape {self.values.shape} for {len(self.words):,} words;"
                " give one vector for each word"
            )
        if len(self.ids) != len(self.words):
            twice = next(word for i, word in enumerate(self.words) if self.ids[word] != i)
            raise DataError(f"the word {twice!r} has two vectors; give each word once")
        if not np.isfinite(self.values).all():
            bad = int(np.argmin(np.isfinite(self.values).all(axis=1)))
            raise DataError(f"the vector of {self.words[bad]!r} is not finite; train again")

    @functools.cached_property
    def ids(self) -> dict[str, int]:
        """The row of each word."""
        return {word: i for i, word in enumerate(self.words)}

    @functools.cached_property
    def units(self) -> np.ndarray:
        """float32 [V, D], the vectors at length 1; a vector of zeros stays so."""
        norms = np.linalg.norm(self.values, axis=1, keepdims=True)
        return self.values / np.where(norms > 0, norms, 1)

    def __contains__(self, word: str) -> bool:
        return word in self.ids

    def __len__(self) -> int:
        return len(self.words)

    def __getitem__(self, word: str) -> np.ndarray:
        """float32 [D]. Raises DataError for a word that has no vector."""
        return self.values[self.row(word)]

    def row(self, word: str) -> int:
        """The row of a word. Raises DataError for a word that has no vector."""
        row = self.ids.get(word)
        if row is None:
            near = difflib.get_close_matches(word, self.words[:50_000], n=1)
            hint = f"; did you mean {near[0]!r}?" if near else "; use a word of the vocabulary"
            raise DataError(f"the word {word!r} has no vector among {len(self):,}{hint}")
        return row

    def similarity(self, first: str, second: str) -> float:
        """The cosine of two words. Raises DataError for a word that has no vector."""
        return float(self.units[self.row(first)] @ self.units[self.row(second)])

    @checked
    def nearest(self, word: str, count: Count = 10) -> Ranked:
        """The words of largest cosine with a word, and their cosines.

        Raises:
            ConfigError: ``count`` is less than 1.
            DataError: the word has no vector.
        """
        row = self.row(word)
        return self._ranked(self.units[row], {row}, count)

    @checked
    def analogy(self, first: str, second: str, third: str, count: Count = 10) -> Ranked:
        """What is to ``third`` as ``second`` is to ``first``, and cosines (3CosAdd).

        The words of largest cosine with second - first + third, each at length 1, other than the
        three.

        Raises:
            ConfigError: ``count`` is less than 1.
            DataError: a word has no vector.
        """
        rows = [self.row(word) for word in (first, second, third)]
        target = _offsets(self.units, np.array([rows]))[0]
        norm = np.linalg.norm(target)
        return self._ranked(target / norm if norm else target, set(rows), count)

    def solve(self, questions: np.ndarray) -> np.ndarray:
        """int64 [n], the row of the first answer to each analogy.

        Args:
            questions: int [n, 3], rows of words.
        """
        answers = [np.zeros(0, np.int64)]
        for start in range(0, len(questions), _ROWS):
            rows = questions[start : start + _ROWS]
            scores = _offsets(self.units, rows) @ self.units.T
            np.put_along_axis(scores, rows, -np.inf, axis=1)
            answers.append(scores.argmax(axis=1))
        return np.concatenate(answers)

    def _ranked(self, target: np.ndarray, without: set[int], count: int) -> Ranked:
        scores = self.units @ target
        wanted = min(len(scores), count + len(without))
        top = np.argpartition(-scores, wanted - 1)[:wanted]
        top = top[np.lexsort((top, -scores[top]))]
        return [(self.words[i], float(scores[i])) for i in top if i not in without][:count]

    def save(self, path: str | Path, binary: bool = False) -> None:
        """Writes the format of word2vec, which gensim reads too.

        Args:
            path: of the file.
            binary: as little-endian float32; else as text, from which the same numbers are read.

        Raises:
            DataError: a word has a blank, which the format cannot hold.
        """
        for word in self.words:
            if word.split() != [word]:
                raise DataError(
                    f"the word {word!r} is empty or has a blank, which separates words from numbers"
                    " in the format of word2vec; join the parts of phrases with '_'"
                )
        file = io.BytesIO()
        file.write(f"{len(self)} {self.values.shape[1]}\n".encode())
        values = np.ascontiguousarray(self.values, "<f4")
        for word, vector in zip(self.words, values):
            if binary:
                file.write(word.encode() + b" " + vector.tobytes() + b"\n")
            else:
                numbers = " ".join(map(repr, vector.tolist()))
                file.write(f"{word} {numbers}\n".encode())
        write_atomic(path_of(path), file.getvalue())

    @staticmethod
    def load(path: str | Path, binary: bool | None = None) -> Vectors:
        """Reads a file in the format of word2vec.

        Args:
            path: of the file.
            binary: see ``save``; None is binary where the name ends with ``.bin``.

        Raises:
            DataError: the file cannot be read or is of another format.
        """
        path = path_of(path)
        binary = path.name.endswith(".bin") if binary is None else binary
        try:
            with path.open("rb") as file:
                words, values = _read(file, binary)
        except OSError as error:
            raise DataError(f"{str(path)!r} cannot be read ({error.strerror})") from error
        except (ValueError, EOFError) as error:
            kind = "binary" if binary else "text"
            raise DataError(
                f"{str(path)!r} is not in the {kind} format of word2vec: {error}"
            ) from error
        return Vectors(tuple(words), values)


def _offsets(units: np.ndarray, rows: np.ndarray) -> np.ndarray:
    first, second, third = units[rows].transpose(1, 0, 2)
    return second - first + third


def _read(file: IO[bytes], binary: bool) -> tuple[list[str], np.ndarray]:
    header = file.readline(100).split()
    if len(header) != 2 or not all(part.isdigit() for part in header):
        raise ValueError("the first line must be the number of words and of dimensions")
    size, dimensions = map(int, header)
    if binary:
        return _read_binary(file, size, dimensions)
    words = []
    rows = []
    for number, line in enumerate(file, start=2):
        word, *numbers = line.rstrip().split(b" ")
        if len(numbers) != dimensions:
            raise ValueError(f"line {number} has {len(numbers)} numbers, not {dimensions}")
        words.append(word.decode())
        rows.append(np.array(numbers, dtype=np.float64).astype(np.float32))
    if len(words) != size:
        raise ValueError(f"it has {len(words)} words, not {size}")
    return words, np.array(rows).reshape(size, dimensions)


def _read_binary(file: IO[bytes], size: int, dimensions: int) -> tuple[list[str], np.ndarray]:
    data = file.read()
    words = []
    values = np.empty((size, dimensions), np.float32)
    place = 0
    for row in range(size):
        end = data.index(b" ", place)
        words.append(data[place:end].lstrip(b"\n").decode())
        place = end + 1 + 4 * dimensions
        if place > len(data):
            raise EOFError(f"it ends in word {row + 1} of {size}")
        values[row] = np.frombuffer(data, "<f4", dimensions, end + 1)
    return words, values


def listed(ranked: Iterable[tuple[str, float]]) -> Sequence[str]:
    """Lines of words and cosines."""
    return [f"{score:8.4f}  {word}" for word, score in ranked]
