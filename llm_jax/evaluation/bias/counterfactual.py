"""Counterfactual prompts: the same sentence about two groups of people, and what may follow.

An unbiased model gives a continuation the same log-likelihood whichever group the prompt names.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from llm_jax.evaluation.bias.records import read_json
from llm_jax.evaluation.bias.scorers import ContinuationScorer, checked_scores, log_likelihoods
from llm_jax.evaluation.significance.intervals import Interval, mean_interval
from llm_jax.evaluation.significance.sign import SignTest, sign_test
from llm_jax.evaluation.significance.sums import SEED
from llm_jax.types import DataError

PORTUGUESE = Path(__file__).with_name("counterfactual_pt.json")
TERM = "{termo}"
TERM_AT_START = "{Termo}"


class Counterfactual(NamedTuple):
    """Two prompts that differ in a group of people, and one continuation.

    Attributes:
        first: prompt with the first group.
        second: prompt with the second.
        continuation: scored after both.
        category: what the groups differ in.
        valence: of the continuation: positive, negative or neutral.
        terms: of both groups.
    """

    first: str
    second: str
    continuation: str
    category: str
    valence: str
    terms: tuple[str, str]


class CounterfactualScores(NamedTuple):
    """Differences of log-likelihood, first group minus second, in nats.

    Attributes:
        mean_absolute: their mean size with its interval; 0 is unbiased.
        mean: with its interval; its sign says which group the continuations follow more easily.
        signs: whether one group is preferred more often than by chance.
        prompts: number of pairs of prompts.
    """

    mean_absolute: Interval
    mean: Interval
    signs: SignTest
    prompts: int


class CounterfactualResult(NamedTuple):
    """Differences of all prompts and of groups of them.

    Attributes:
        overall: of all; its mean has no meaning of its own, as categories have their own order of
            groups.
        by_category: such as gender.
        by_category_and_valence: keyed ``category/valence``: a group that is preferred by positive
            continuations only is another finding than one preferred by all.
    """

    overall: CounterfactualScores
    by_category: dict[Hashable, CounterfactualScores]
    by_category_and_valence: dict[Hashable, CounterfactualScores]


def read_counterfactuals(path: str | Path = PORTUGUESE) -> list[Counterfactual]:
    """Every pair of terms in every template of its file.

    The file is an object: ``groups`` (a list of category and pairs of terms) and ``templates`` (a
    list of prompt, continuation, valence and, where a template is not for all, categories).

    Args:
        path: of the file; ours is in Brazilian Portuguese.

    Raises:
        DataError: a field is missing, or a prompt has no place for the term.
    """
    value = read_json(path)
    if not isinstance(value, dict):
        raise DataError(f"{path}: an object with groups and templates is expected")
    found = []
    for group in _list(path, value, "groups"):
        category = _text(path, group, "category")
        for template in _list(path, value, "templates"):
            if category not in template.get("categories", [category]):
                continue
            for pair in _list(path, group, "pairs"):
                found.append(_counterfactual(path, category, template, pair))
    return found


def _counterfactual(path: Any, category: str, template: Any, pair: Any) -> Counterfactual:
    if not isinstance(pair, list) or len(pair) != 2 or pair[0] == pair[1]:
        raise DataError(f"{path}: {category} has the pair {pair!r}; two different terms expected")
    prompt = _text(path, template, "prompt")
    if prompt.count(TERM) + prompt.count(TERM_AT_START) != 1:
        raise DataError(f"{path}: the prompt {prompt!r} has not one {TERM} or {TERM_AT_START}")
    first, second = (_filled(prompt, term) for term in pair)
    return Counterfactual(
        first=first,
        second=second,
        continuation=_text(path, template, "continuation"),
        category=category,
        valence=_text(path, template, "valence"),
        terms=(pair[0], pair[1]),
    )


def _filled(prompt: str, term: str) -> str:
    capital = term[0].upper() + term[1:]
    return prompt.replace(TERM_AT_START, capital).replace(TERM, term)


def _list(path: Any, value: Any, name: str) -> list:
    found = value.get(name) if isinstance(value, dict) else None
    if not isinstance(found, list) or not found:
        raise DataError(f"{path}: {name} is {found!r}; a list that is not empty is expected")
    return found


def _text(path: Any, value: Any, name: str) -> str:
    found = value.get(name) if isinstance(value, dict) else None
    if not isinstance(found, str) or not found.strip():
        raise DataError(f"{path}: {name} is {found!r} in {value!r}; a text is expected")
    return found


def score_counterfactuals(
    items: Sequence[Counterfactual], scorer: ContinuationScorer
) -> np.ndarray:
    """Log-likelihood of each continuation after both prompts: [N, 2]."""
    prompts = [prompt for item in items for prompt in (item.first, item.second)]
    texts = [item.continuation for item in items for _ in range(2)]
    return log_likelihoods(scorer, prompts, texts).reshape(-1, 2)


def counterfactual_bias(
    items: Sequence[Counterfactual],
    scores: np.ndarray,
    *,
    resamples: int = 1000,
    seed: int = SEED,
) -> CounterfactualResult:
    """How much a continuation's log-likelihood depends on the group that the prompt names.

    Args:
        items: pairs of prompts.
        scores: [N, 2], as of ``score_counterfactuals``.
        resamples: of the bootstrap intervals.
        seed: of the bootstrap.

    Raises:
        DataError: there are no items, or a score is missing.
    """
    if not len(items):
        raise DataError("there are no counterfactual prompts to score")
    table = checked_scores("scores", scores, (len(items), 2))
    differences = table[:, 0] - table[:, 1]
    options = {"resamples": resamples, "seed": seed}
    categories = [item.category for item in items]
    valences = [f"{item.category}/{item.valence}" for item in items]
    return CounterfactualResult(
        overall=_scores(differences, **options),
        by_category=_by(categories, differences, **options),
        by_category_and_valence=_by(valences, differences, **options),
    )


def _by(
    labels: Sequence[Hashable], differences: np.ndarray, **options: int
) -> dict[Hashable, CounterfactualScores]:
    found = {}
    for label in dict.fromkeys(labels):
        inside = np.array([each == label for each in labels])
        found[label] = _scores(differences[inside], **options)
    return found


def _scores(differences: np.ndarray, resamples: int, seed: int) -> CounterfactualScores:
    options = {"resamples": resamples, "seed": seed}
    return CounterfactualScores(
        mean_absolute=mean_interval(np.abs(differences), **options),
        mean=mean_interval(differences, **options),
        signs=sign_test(differences),
        prompts=len(differences),
    )
