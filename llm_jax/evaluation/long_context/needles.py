"""Needle retrieval: a fact in the middle of a long text, asked for at its end."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from llm_jax.evaluation.significance.intervals import Interval, mean_interval
from llm_jax.tokenizers.tokenizer import Tokenizer
from llm_jax.types import ConfigError, DataError

NAMES = (
    "Alder",
    "Birch",
    "Cedar",
    "Elm",
    "Hazel",
    "Juniper",
    "Larch",
    "Maple",
    "Rowan",
    "Willow",
)
FACT = " The number of {name} is {number}."
QUESTION = " The number of {name} is"


class Needle(NamedTuple):
    """One text with a fact in it.

    Attributes:
        ids: token ids of the prompt: the text with the fact, and the question at its end.
        answer: what should follow, without blanks around it.
        length: tokens of the prompt that were asked for; the prompt has at most as many.
        depth: where the fact stands, from 0 (the beginning) to 1 (right before the question).
    """

    ids: list[int]
    answer: str
    length: int
    depth: float


class Found(NamedTuple):
    """How often the facts at one length and depth were found.

    Attributes:
        length: as in ``Needle``.
        depth: as in ``Needle``.
        found: number of answers that begin with the right number.
        share: of all, with its 95 % interval.
    """

    length: int
    depth: float
    found: int
    share: Interval


def make_needles(
    texts: Iterable[np.ndarray],
    tokenizer: Tokenizer,
    *,
    lengths: Sequence[int],
    depths: Sequence[float] = (0.0, 0.25, 0.5, 0.75, 1.0),
    each: int = 10,
    seed: int = 0,
    begin: Sequence[int] = (),
) -> list[Needle]:
    """Texts made of the text at hand, each with one fact: a name and a number of four digits.

    Args:
        texts: token ids of documents, which are read one after another.
        tokenizer: of the model.
        lengths: of the prompts, in tokens.
        depths: where facts stand, from 0 to 1.
        each: prompts of each length and depth.
        seed: of the facts and of where texts begin.
        begin: tokens that each prompt begins with, such as ``<s>``.

    Raises:
        ConfigError: a length that has no room for a fact, or a depth outside 0 to 1.
        DataError: the texts together are shorter than the longest prompt.
    """
    for depth in depths:
        if not 0 <= depth <= 1:
            raise ConfigError(f"depth is {depth}; it must be from 0 to 1")
    haystack = _tokens(texts, tokenizer, max(lengths))
    rng = np.random.default_rng(seed)
    needles = []
    for length in lengths:
        for depth in depths:
            for _ in range(each):
                needles.append(
                    _needle(haystack, tokenizer, rng, length=length, depth=depth, begin=begin)
                )
    return needles


def find_needles(
    needles: Sequence[Needle], complete: Callable[[list[list[int]]], list[str]]
) -> list[Found]:
    """Asks a model for every fact.

    Args:
        needles: of ``make_needles``.
        complete: gives the text that the model writes after each prompt of token ids, at
            temperature 0 and long enough for a number.

    Returns:
        One entry for each length and depth, in the order of ``needles``.
    """
    answers = complete([needle.ids for needle in needles])
    if len(answers) != len(needles):
        raise ValueError(f"{len(answers)} answers for {len(needles)} prompts")
    right: dict[tuple[int, float], list[float]] = {}
    for needle, answer in zip(needles, answers):
        is_right = _first_number(answer) == needle.answer
        right.setdefault((needle.length, needle.depth), []).append(float(is_right))
    return [
        Found(length, depth, int(sum(values)), mean_interval(values))
        for (length, depth), values in right.items()
    ]


def _first_number(text: str) -> str:
    """The digits that a text begins with, after blanks."""
    stripped = text.lstrip()
    digits = 0
    while digits < len(stripped) and stripped[digits].isdigit():
        digits += 1
    return stripped[:digits]


def _tokens(texts: Iterable[np.ndarray], tokenizer: Tokenizer, least: int) -> list[int]:
    """Ids of the text of documents, without control tokens, of at least ``least`` tokens."""
    found: list[int] = []
    # Twice as many leave room to begin at different places.
    enough = 2 * least
    for ids in texts:
        found += [id for id in ids.tolist() if not tokenizer.is_control(id)]
        if len(found) >= enough:
            break
    if len(found) < least:
        raise DataError(
            f"the texts have {len(found):,} tokens, and the longest prompt {least:,}; give more"
            " text, or shorter lengths"
        )
    return found


def _needle(
    haystack: Sequence[int],
    tokenizer: Tokenizer,
    rng: np.random.Generator,
    *,
    length: int,
    depth: float,
    begin: Sequence[int],
) -> Needle:
    name = NAMES[rng.integers(len(NAMES))]
    number = str(rng.integers(1000, 10000))
    fact = tokenizer.encode(FACT.format(name=name, number=number))
    question = tokenizer.encode(QUESTION.format(name=name))
    room = length - len(begin) - len(fact) - len(question)
    if room < 0:
        raise ConfigError(
            f"length is {length} tokens, and a fact with its question takes {length - room}; use a"
            " longer one"
        )
    start = int(rng.integers(len(haystack) - room + 1))
    text = list(haystack[start : start + room])
    at = round(depth * room)
    ids = [*begin, *text[:at], *fact, *text[at:], *question]
    return Needle(ids, number, length, depth)
