"""WinoBias (Zhao et al. 2018): does a pronoun follow the stereotype of an occupation?"""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from llm_jax.evaluation.bias.preference import Preference, preference, preference_by
from llm_jax.evaluation.bias.records import Row, lettered_options, read_jsonl, read_text
from llm_jax.evaluation.bias.scorers import ContinuationScorer, checked_scores, log_likelihoods
from llm_jax.evaluation.significance.intervals import Interval, interval_of_sums
from llm_jax.evaluation.significance.sums import SEED, means
from llm_jax.types import DataError

_MASK = "[MASK]"
_PRONOUN_GENDER = {
    "he": "male",
    "him": "male",
    "his": "male",
    "she": "female",
    "her": "female",
    "hers": "female",
}
# They follow the pronoun of their sentence.
_REFLEXIVE = {"himself": "herself", "herself": "himself"}
_REFLEXIVE_SPAN = re.compile(r"\[(himself|herself)\]")
_NUMBERED = re.compile(r"^\d+\s+")
_BRACKETED = re.compile(r"\[([^\]]+)\]")


class WinoPair(NamedTuple):
    """One sentence with two pronouns for the same occupation.

    Attributes:
        pro: with the pronoun of the stereotype.
        anti: with the other pronoun.
        pronoun: of the stereotype.
        occupation: whom the pronoun is for, with its article.
    """

    pro: str
    anti: str
    pronoun: str
    occupation: str


class WinoBiasResult(NamedTuple):
    """How much more likely sentences are with the pronoun of the stereotype.

    Attributes:
        overall: of all pairs.
        by_gender: of occupations whose stereotype is male, and female. A model that prefers one
            pronoun everywhere has 100 in one and 0 in the other.
    """

    overall: Preference
    by_gender: dict[Hashable, Preference]


class CoreferenceGap(NamedTuple):
    """Accuracy of coreference on sentences that follow the stereotype, and on those that do not.

    Attributes:
        pro: accuracy on the former, percent.
        anti: accuracy on the latter, percent.
        gap: pro minus anti with its interval over pairs; 0 is unbiased.
    """

    pro: float
    anti: float
    gap: Interval


def read_winobias(path: str | Path) -> list[WinoPair]:
    """Pairs of a jsonl file with the fields text (holds [MASK] and [the occupation]),
    pro_stereotyped (a pronoun) and options (both pronouns by letter); or with the fields of
    ``WinoPair``: both sentences, the pronoun and the occupation.

    Raises:
        DataError: a field is missing or holds something else.
    """
    return [_pair(row) for row in read_jsonl(path)]


def _pair(row: Row) -> WinoPair:
    if "pro" in row.fields:
        return _named_pair(row)
    text = row.text("text")
    pronoun = row.text("pro_stereotyped")
    options = lettered_options(row.text("options"))
    listed = [each for each in options if each in _PRONOUN_GENDER]
    others = [each for each in listed if each != pronoun]
    if pronoun not in listed or len(others) != 1:
        raise DataError(
            f"{row.where}: options list the pronouns {listed}; pro_stereotyped ({pronoun!r}) and"
            " one other are expected"
        )
    if text.count(_MASK) != 1:
        raise DataError(f"{row.where}: text is {text!r}; one {_MASK} is expected")
    pro = text.replace(_MASK, pronoun)
    anti = _REFLEXIVE_SPAN.sub(_other_reflexive, text.replace(_MASK, others[0]))
    return WinoPair(
        pro=_BRACKETED.sub(r"\1", pro),
        anti=_BRACKETED.sub(r"\1", anti),
        pronoun=pronoun,
        occupation=_occupation(row.where, text.replace(_MASK, "")),
    )


def _named_pair(row: Row) -> WinoPair:
    pair = WinoPair(*(row.text(name) for name in WinoPair._fields))
    if pair.pronoun not in _PRONOUN_GENDER:
        raise DataError(
            f"{row.where}: pronoun is {pair.pronoun!r}; one of {', '.join(_PRONOUN_GENDER)} is"
            " expected"
        )
    return pair


def _other_reflexive(span: re.Match[str]) -> str:
    return f"[{_REFLEXIVE[span[1]]}]"


def _occupation(where: str, sentence: str) -> str:
    """The span in brackets that is no pronoun."""
    pronouns = {*_PRONOUN_GENDER, *_REFLEXIVE}
    found = [span for span in _BRACKETED.findall(sentence) if span.lower() not in pronouns]
    if len(found) != 1:
        raise DataError(
            f"{where}: {sentence!r} has the spans {found}; one [occupation] is expected"
        )
    return found[0]


def read_winobias_texts(pro: str | Path, anti: str | Path) -> list[WinoPair]:
    """Pairs of the two published text files, whose lines belong together.

    A line is numbered, and has the occupation and the pronoun in brackets.

    Raises:
        DataError: a file is missing, the files have different numbers of lines, or two lines are
            no pair.
    """
    both = [read_text(path).splitlines() for path in (pro, anti)]
    if len(both[0]) != len(both[1]):
        raise DataError(f"{pro} has {len(both[0])} lines and {anti} {len(both[1])}")
    return [
        _text_pair(f"{pro}:{number}", *lines)
        for number, lines in enumerate(zip(*both, strict=True), 1)
    ]


def _text_pair(where: str, pro: str, anti: str) -> WinoPair:
    sentences = [_NUMBERED.sub("", line.strip()) for line in (pro, anti)]
    occupation, other = (_occupation(where, sentence) for sentence in sentences)
    spans = [span.lower() for span in _BRACKETED.findall(sentences[0])]
    pronouns = [span for span in spans if span in _PRONOUN_GENDER]
    if occupation != other or len(pronouns) != 1:
        raise DataError(
            f"{where}: {sentences[0]!r} and {sentences[1]!r} are no pair with one [pronoun] for the"
            " same [occupation]"
        )
    plain = [_BRACKETED.sub(r"\1", sentence) for sentence in sentences]
    return WinoPair(plain[0], plain[1], pronouns[0], occupation)


def score_pairs(pairs: Sequence[WinoPair], scorer: ContinuationScorer) -> np.ndarray:
    """Log-likelihood of both sentences of each pair: [N, 2], pro first."""
    texts = [text for pair in pairs for text in (pair.pro, pair.anti)]
    return log_likelihoods(scorer, [""] * len(texts), texts).reshape(-1, 2)


def winobias(
    pairs: Sequence[WinoPair], scores: np.ndarray, *, resamples: int = 1000, seed: int = SEED
) -> WinoBiasResult:
    """How often, and by how much, the sentence of the stereotype is more likely.

    Args:
        pairs: of sentences.
        scores: [N, 2] from ``score_pairs``: pro, anti.
        resamples: of the bootstrap intervals.
        seed: of the bootstrap.

    Raises:
        DataError: there are no pairs, or a score is missing.
    """
    pro, anti = checked_scores("scores", scores, (len(pairs), 2)).T
    genders = [_PRONOUN_GENDER[pair.pronoun] for pair in pairs]
    options = {"resamples": resamples, "seed": seed}
    return WinoBiasResult(
        overall=preference(pro, anti, **options),
        by_gender=preference_by(genders, pro, anti, **options),
    )


def coreference_gap(
    pro_right: Sequence[bool],
    anti_right: Sequence[bool],
    *,
    resamples: int = 1000,
    seed: int = SEED,
) -> CoreferenceGap:
    """Accuracy on sentences with the stereotype minus accuracy on the same ones against it.

    Args:
        pro_right: whether the occupation was found in each sentence that follows the stereotype.
        anti_right: the same of its counterpart.
        resamples: of the bootstrap interval.
        seed: of the bootstrap.

    Raises:
        DataError: the numbers differ, or there are none.
    """
    if len(pro_right) != len(anti_right):
        raise DataError(
            f"there are {len(pro_right)} answers for and {len(anti_right)} against the stereotype;"
            " give both of every pair"
        )
    pro = 100.0 * np.asarray(pro_right, float)
    anti = 100.0 * np.asarray(anti_right, float)
    gaps = means(pro - anti, "answers")
    gap = interval_of_sums(gaps, resamples=resamples, seed=seed)
    return CoreferenceGap(float(pro.mean()), float(anti.mean()), gap)
