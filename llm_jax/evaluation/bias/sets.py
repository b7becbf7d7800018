"""Bias sets measured with a model: which items fit it, their scores, and figures as JSON.

A figure is ``{"value", "low", "high", "items"}`` with its 95 % bootstrap interval, or a number.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np

from llm_jax.evaluation.bias.bbq import BBQScores, bbq, choose_answers, read_bbq, score_answers
from llm_jax.evaluation.bias.counterfactual import (
    PORTUGUESE,
    CounterfactualScores,
    counterfactual_bias,
    read_counterfactuals,
    score_counterfactuals,
)
from llm_jax.evaluation.bias.crows_pairs import (
    CrowsPair,
    crows_pairs,
    read_crows_pairs,
    score_causal,
    score_masked,
    shared_positions,
)
from llm_jax.evaluation.bias.preference import Preference
from llm_jax.evaluation.bias.scorers import ContinuationScorer, MaskedScorer
from llm_jax.evaluation.bias.stereoset import (
    StereoSetScores,
    read_stereoset,
    score_items,
    stereoset,
)
from llm_jax.evaluation.bias.winobias import read_winobias, score_pairs, winobias
from llm_jax.evaluation.significance.intervals import Interval
from llm_jax.types import ConfigError, DataError

Record = dict[str, Any]
Item = TypeVar("Item")
_SUM = "log-likelihood of the text"
_PSEUDO = "log-probability of the shared tokens, each masked alone"


class CausalScores(NamedTuple):
    """What a model of the next token gives for texts after prompts.

    Attributes:
        log_likelihood: of each text, nats.
        by_token: the same divided by its tokens.
        excess: tokens by which a prompt and its text are longer than the context; 0 if they fit.
    """

    log_likelihood: ContinuationScorer
    by_token: ContinuationScorer
    excess: ContinuationScorer


class MaskedScores(MaskedScorer, Protocol):
    """A masked language model that says what fits it."""

    def fits(self, tokens: int) -> bool:
        """Whether a text of so many tokens fits the context."""
        ...


class Measured(NamedTuple):
    """How a set is measured.

    Attributes:
        model: scores of the model, of either kind.
        options: ``resamples`` and ``seed`` of the bootstrap.
    """

    model: CausalScores | MaskedScores
    options: Mapping[str, int]

    def causal(self, name: str) -> CausalScores:
        """The scores of a model of the next token.

        Raises:
            ConfigError: the model is another.
        """
        if not isinstance(self.model, CausalScores):
            raise ConfigError(
                f"sets names {name}, which scores texts after a prompt, and this model predicts"
                " masked tokens; leave the set out: crows-pairs, winobias, weat and seat take such"
                " a model"
            )
        return self.model


def measure_crows_pairs(path: Path | None, measured: Measured) -> Record:
    """CrowS-Pairs of a csv or jsonl file."""
    read = read_crows_pairs(needed("crows-pairs", path))
    pairs, scores, skipped, score = _of_pairs(read, read, measured, score_causal)
    form = "causal" if isinstance(measured.model, CausalScores) else "masked"
    found = crows_pairs(pairs, scores, form, **measured.options)
    return _record(path, score, skipped, len(read)) | {
        "form": found.form,
        "overall": _preference(found.overall),
        "by_category": {str(name): _preference(of) for name, of in found.by_category.items()},
        "by_direction": {str(name): _preference(of) for name, of in found.by_direction.items()},
    }


def measure_winobias(path: Path | None, measured: Measured) -> Record:
    """WinoBias of a jsonl file."""
    read = read_winobias(needed("winobias", path))
    as_crows = [CrowsPair(pair.pro, pair.anti, pair.occupation) for pair in read]
    pairs, scores, skipped, score = _of_pairs(read, as_crows, measured, score_pairs)
    found = winobias(pairs, scores, **measured.options)
    return _record(path, score, skipped, len(read)) | {
        "overall": _preference(found.overall),
        "by_category": {str(name): _preference(of) for name, of in found.by_gender.items()},
    }


def measure_stereoset(path: Path | None, measured: Measured) -> Record:
    """StereoSet of a jsonl file; of log-likelihoods by token, as published for GPT-2."""
    model = measured.causal("stereoset")
    read = read_stereoset(needed("stereoset", path))
    items, skipped = _fitting(read, score_items(read, model.excess))
    scores = score_items(items, model.by_token)
    found = stereoset(items, scores, **measured.options)
    return _record(path, f"{_SUM}, by token", skipped, len(read)) | {
        "overall": _stereoset(found.overall),
        "by_category": {name: _stereoset(of) for name, of in found.by_domain.items()},
        "by_form": {name: _stereoset(of) for name, of in found.by_form.items()},
    }


def measure_bbq(path: Path | None, measured: Measured) -> Record:
    """BBQ of a jsonl file: the answer with the highest log-likelihood by character is chosen."""
    model = measured.causal("bbq")
    read = read_bbq(needed("bbq", path))
    excess = np.array([max(of_item) for of_item in score_answers(read, model.excess)])
    items, skipped = _fitting(read, excess[:, None])
    chosen = choose_answers(items, score_answers(items, model.log_likelihood))
    found = bbq(items, chosen, **measured.options)
    return _record(path, "log-likelihood of the answer, by character", skipped, len(read)) | {
        "overall": _bbq(found.overall),
        "by_category": {name: _bbq(of) for name, of in found.by_category.items()},
    }


def measure_counterfactuals(path: Path | None, measured: Measured) -> Record:
    """Counterfactual prompts of a JSON file; ours in Portuguese where none is named."""
    model = measured.causal("counterfactual")
    read = read_counterfactuals(path or PORTUGUESE)
    items, skipped = _fitting(read, score_counterfactuals(read, model.excess))
    scores = score_counterfactuals(items, model.log_likelihood)
    found = counterfactual_bias(items, scores, **measured.options)
    score = "log-likelihood of the continuation, first group minus second"
    return _record(path or PORTUGUESE, score, skipped, len(read)) | {
        "overall": _counterfactual(found.overall),
        "by_category": {str(name): _counterfactual(of) for name, of in found.by_category.items()},
        "by_category_and_valence": {
            str(name): _counterfactual(of) for name, of in found.by_category_and_valence.items()
        },
    }


SETS: dict[str, Callable[[Path | None, Measured], Record]] = {
    "crows-pairs": measure_crows_pairs,
    "stereoset": measure_stereoset,
    "winobias": measure_winobias,
    "bbq": measure_bbq,
    "counterfactual": measure_counterfactuals,
}
"""Sets that need scores of texts alone."""


def _of_pairs(
    items: Sequence[Item],
    pairs: Sequence[CrowsPair],
    measured: Measured,
    score: Callable[[Sequence[Item], ContinuationScorer], np.ndarray],
) -> tuple[list[Item], np.ndarray, dict[str, int], str]:
    """Items that fit the model, scores of both texts [N, 2], how many are skipped, and the score's
    name.
    """
    model = measured.model
    if isinstance(model, CausalScores):
        kept, skipped = _fitting(items, score(items, model.excess))
        return kept, score(kept, model.log_likelihood), skipped, _SUM
    long = [not all(model.fits(len(row)) for row in _rows(pair, model)) for pair in pairs]
    shares = [bool(shared_positions(*_rows(pair, model))[0]) for pair in pairs]
    places = [at for at in range(len(pairs)) if shares[at] and not long[at]]
    skipped = {
        "too_long": sum(long),
        "without_shared_tokens": len(pairs) - sum(long) - len(places),
    }
    scores = score_masked([pairs[at] for at in places], model)
    return [items[at] for at in places], scores, skipped, _PSEUDO


def _rows(pair: CrowsPair, model: MaskedScorer) -> tuple[Sequence[int], Sequence[int]]:
    return model.tokenize(pair.stereotype), model.tokenize(pair.anti)


def _fitting(items: Sequence[Item], excess: np.ndarray) -> tuple[list[Item], dict[str, int]]:
    """The items of which no text [N, texts] is too long, and how many are.

    Raises:
        DataError: none fits.
    """
    fits = np.all(excess <= 0, axis=1)
    if not fits.any():
        raise DataError(
            f"all {len(items):,} items are longer than the model's context, the shortest by"
            f" {int(excess.max(axis=1).min())} tokens; nothing can be measured"
        )
    return [item for item, fit in zip(items, fits.tolist()) if fit], {
        "too_long": int((~fits).sum())
    }


def needed(name: str, path: Path | None) -> Path:
    """The file of a set.

    Raises:
        ConfigError: there is none.
    """
    if path is None:
        raise ConfigError(f"sets names {name} without a file; write {name}=FILE")
    return path


def _record(path: Path | None, score: str, skipped: Mapping[str, int], items: int) -> Record:
    return {
        "file": "" if path is None else path.name,
        "score": score,
        "items": items - sum(skipped.values()),
        "skipped": dict(skipped),
    }


def figure_of(interval: Interval) -> Record:
    """An interval as JSON."""
    found = interval._asdict()
    del found["signature"]
    return found


def _preference(scores: Preference) -> Record:
    return {
        "items": scores.pairs,
        "percent": figure_of(scores.percent),
        "mean_difference": figure_of(scores.mean_difference),
        "preferred": scores.preferred,
        "opposed": scores.opposed,
        "neutral": scores.neutral,
    }


def _stereoset(scores: StereoSetScores) -> Record:
    return {
        "items": scores.items,
        "terms": scores.terms,
        **{name: figure_of(interval) for name, interval in scores.intervals.items()},
        "icat_of_terms": scores.icat_of_terms,
    }


def _bbq(scores: BBQScores) -> Record:
    names = ("accuracy_ambiguous", "accuracy_disambiguated", "s_dis", "s_amb")
    figures = {name: getattr(scores, name) for name in names}
    figures |= {name: figure_of(interval) for name, interval in scores.intervals.items()}
    return {
        "items": scores.ambiguous + scores.disambiguated,
        **figures,
        "ambiguous": scores.ambiguous,
        "disambiguated": scores.disambiguated,
        "unlabelled": scores.unlabelled,
    }


def _counterfactual(scores: CounterfactualScores) -> Record:
    return {
        "items": scores.prompts,
        "mean_absolute": figure_of(scores.mean_absolute),
        "mean": figure_of(scores.mean),
        "sign_test_p": scores.signs.p_value,
    }
