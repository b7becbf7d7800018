"""How good word vectors are: similarities of pairs beside people's, and analogies."""

from __future__ import annotations

import math
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from llm_jax.classic.rank_correlation import spearman
from llm_jax.classic.word2vec.vectors import Vectors
from llm_jax.storage.paths import path_of
from llm_jax.types import DataError

_NAMED = 5


class WordPair(NamedTuple):
    """Two words and how similar people find them."""

    first: str
    second: str
    score: float


class Analogy(NamedTuple):
    """``words``: a b c d, as in "man king woman queen": d is what is asked for. ``section`` is the
    heading that it stands under.
    """

    words: tuple[str, str, str, str]
    section: str


def read_pairs(path: str | Path, lowercase: bool = True) -> list[WordPair]:
    """Pairs of words with scores, in the form of WordSim353.

    Args:
        path: a file with two words and a number on each line, separated by tabs, commas or blanks;
            lines that begin with # are remarks.
        lowercase: whether words are made lower case.

    Raises:
        DataError: the file cannot be read, or a line has another form; the message names it.
    """
    pairs = []
    for number, line in _lines(path):
        if line.startswith("#"):
            continue
        parts = (line.lower() if lowercase else line).replace(",", " ").split()
        score = _number(parts[2]) if len(parts) == 3 else None
        if score is None:
            raise DataError(
                f"{str(path)!r} line {number} is {line[:50]!r}; it must be two words and a number"
            )
        pairs.append(WordPair(parts[0], parts[1], score))
    if not pairs:
        raise DataError(
            f"{str(path)!r} has no pairs; give a file with two words and a number a line"
        )
    return pairs


def read_analogies(path: str | Path, lowercase: bool = True) -> list[Analogy]:
    """Analogies in the form of questions-words.txt.

    Args:
        path: a file with four words on each line; a line ": name" begins a section.
        lowercase: whether words are made lower case.

    Raises:
        DataError: the file cannot be read, or a line has another form; the message names it.
    """
    questions = []
    section = ""
    for number, line in _lines(path):
        if line.startswith(":"):
            section = line[1:].strip()
            continue
        parts = (line.lower() if lowercase else line).split()
        if len(parts) != 4:
            raise DataError(
                f"{str(path)!r} line {number} is {line[:50]!r}; it must be four words, or a colon"
                " and the name of a section"
            )
        questions.append(Analogy((parts[0], parts[1], parts[2], parts[3]), section))
    if not questions:
        raise DataError(f"{str(path)!r} has no analogies; give a file with four words a line")
    return questions


def word_similarity(vectors: Vectors, pairs: list[WordPair]) -> dict[str, Any]:
    """Rank correlation of cosines and scores.

    Returns:
        ``spearman``, over the pairs whose words both have vectors; None where there are fewer than
        two of them, or all are alike. ``pairs``, their number; ``out_of_vocabulary``, the number of
        the others; ``unknown``, some words without a vector.
    """
    known = [pair for pair in pairs if pair.first in vectors and pair.second in vectors]
    cosines = [vectors.similarity(pair.first, pair.second) for pair in known]
    words = [word for pair in pairs for word in pair[:2]]
    return {
        "spearman": _correlation(cosines, [pair.score for pair in known]),
        "pairs": len(known),
        "out_of_vocabulary": len(pairs) - len(known),
        "unknown": _unknown(vectors, words),
    }


def analogies(vectors: Vectors, questions: list[Analogy]) -> dict[str, Any]:
    """Share of analogies whose first answer is right (3CosAdd over all words but the three).

    Returns:
        ``accuracy``, over the analogies whose four words all have vectors; None where there are
        none. ``questions``, their number; ``out_of_vocabulary``, the number of the others;
        ``unknown``, some words without a vector; ``sections``, name -> accuracy and questions.
    """
    known = [question for question in questions if all(word in vectors for word in question.words)]
    rows = np.array([[vectors.ids[word] for word in question.words] for question in known])
    rows = rows.reshape(-1, 4)
    right = vectors.solve(rows[:, :3]) == rows[:, 3]
    by_section: defaultdict[str, list[bool]] = defaultdict(list)
    for question, one in zip(known, right.tolist()):
        by_section[question.section].append(one)
    words = [word for question in questions for word in question.words]
    return {
        "accuracy": float(right.mean()) if known else None,
        "questions": len(known),
        "out_of_vocabulary": len(questions) - len(known),
        "unknown": _unknown(vectors, words),
        "sections": {
            name: {"accuracy": sum(found) / len(found), "questions": len(found)}
            for name, found in by_section.items()
        },
    }


def _lines(path: str | Path) -> list[tuple[int, str]]:
    """Numbers and lines that are not blank."""
    try:
        text = path_of(path).read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"{str(path)!r} cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{str(path)!r} is not UTF-8 at byte {error.start}; convert it") from error
    lines = enumerate(text.splitlines(), start=1)
    return [(number, line.strip()) for number, line in lines if line.strip()]


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _correlation(cosines: list[float], scores: list[float]) -> float | None:
    if len(cosines) < 2:
        return None
    found = spearman(cosines, scores)
    return None if math.isnan(found) else found


def _unknown(vectors: Vectors, words: list[str]) -> list[str]:
    return list(dict.fromkeys(word for word in words if word not in vectors))[:_NAMED]
