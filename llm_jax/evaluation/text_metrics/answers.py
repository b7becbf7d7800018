"""Exact match and F1 of short answers, as SQuAD defines them (Rajpurkar et al. 2016, 2018)."""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np

from llm_jax.evaluation.text_metrics.references import check_lengths
from llm_jax.evaluation.text_metrics.words import fold, unicode_words
from llm_jax.types import ConfigError, DataError

Normalizer = Literal["squad", "unicode"]
ARTICLES = {
    "en": ("a", "an", "the"),
    "pt": ("o", "a", "os", "as", "um", "uma", "uns", "umas"),
    "none": (),
}
_PUNCTUATION = set(string.punctuation)
_ENGLISH_ARTICLES = re.compile(r"\b(a|an|the)\b", re.UNICODE)


class AnswerScores(NamedTuple):
    """Scores of answers.

    Attributes:
        exact_match: share of answers that equal a reference, 0 to 1.
        f1: mean F1 of words, 0 to 1.
        exact_each: 0 or 1 [N].
        f1_each: [N].
        signature: the normalizer.
    """

    exact_match: float
    f1: float
    exact_each: np.ndarray
    f1_each: np.ndarray
    signature: str


def normalize_squad(text: str) -> str:
    """Lower case without ASCII punctuation, English articles and extra white space."""
    kept = "".join(character for character in text.lower() if character not in _PUNCTUATION)
    return " ".join(_ENGLISH_ARTICLES.sub(" ", kept).split())


def normalize_unicode(text: str, articles: str = "none") -> str:
    """Folded words of any language without punctuation and the articles of a language.

    An apostrophe inside a word is dropped, as SQuAD drops it; Chinese characters are words.
    """
    dropped = ARTICLES[articles]
    joined = "".join(
        character for character in fold(text) if unicodedata.category(character)[0] != "P"
    )
    return " ".join(word for word in unicode_words(joined) if word not in dropped)


def answer_scores(
    answers: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    normalizer: Normalizer = "squad",
    articles: str = "en",
) -> AnswerScores:
    """Exact match and F1 of each answer with the reference that it matches best.

    A reference without words says that the question has no answer: an empty answer scores 1 and any
    other 0, as in SQuAD 2.

    Args:
        answers: of the system; an empty string is no answer.
        references: possible answers of each question; ``[""]`` where there is none.
        normalizer: ``squad`` is SQuAD's own for English; ``unicode`` is for any language.
        articles: dropped by the normalizer: en, pt or none. ``squad`` drops English ones.

    Raises:
        ConfigError: an option is not known.
        DataError: the numbers differ, or a question has no references.
    """
    normalize = _normalizer(normalizer, articles)
    check_lengths(answers, references, "answers")
    exact = np.zeros(len(answers))
    f1 = np.zeros(len(answers))
    for at, (answer, own) in enumerate(zip(answers, references, strict=True)):
        _check(at, answer, own)
        given = normalize(answer)
        expected = [each for each in map(normalize, own) if each] or [""]
        exact[at] = max(given == each for each in expected)
        f1[at] = max(_word_f1(given.split(), each.split()) for each in expected)
    signature = f"norm:{normalizer}|articles:{articles}|multi:max"
    return AnswerScores(float(exact.mean()), float(f1.mean()), exact, f1, signature)


def _word_f1(given: list[str], expected: list[str]) -> float:
    if not given or not expected:
        return float(given == expected)
    shared = sum((Counter(given) & Counter(expected)).values())
    return 2 * shared / (len(given) + len(expected))


def _normalizer(normalizer: str, articles: str) -> Callable[[str], str]:
    if normalizer not in get_args(Normalizer):
        known = ", ".join(get_args(Normalizer))
        raise ConfigError(f"normalizer is {normalizer!r}; it expects one of {known}")
    if articles not in ARTICLES:
        raise ConfigError(f"articles is {articles!r}; it expects one of {', '.join(ARTICLES)}")
    if normalizer == "squad":
        if articles != "en":
            raise ConfigError(
                f"articles is {articles!r}; the normalizer squad drops English ones only: choose"
                " normalizer='unicode'"
            )
        return normalize_squad

    def normalize(text: str) -> str:
        return normalize_unicode(text, articles)

    return normalize


def _check(at: int, answer: str, own: Sequence[str]) -> None:
    if not isinstance(answer, str):
        raise DataError(f"answers[{at}] is {answer!r}; it expects a string, empty for no answer")
    if isinstance(own, str):
        raise DataError(
            f"references[{at}] is one string; it expects the list of answers of a question"
        )
    if not len(own):
        raise DataError(
            f"references[{at}] is empty; give the answers of the question, or [''] where it has"
            " none"
        )
