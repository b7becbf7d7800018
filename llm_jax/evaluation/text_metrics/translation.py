"""BLEU, chrF and TER by sacrebleu, with its signature (Post 2018; Popović 2015; Snover et al.
2006).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from llm_jax.evaluation.significance.sums import ItemSums
from llm_jax.evaluation.text_metrics.references import check_references, package
from llm_jax.types import ConfigError

_EXTRA_TOKENIZERS = ("spm", "flores101", "flores200", "spBLEU-1K", "ja-mecab", "ko-mecab")


class Scored(NamedTuple):
    """A metric of a system's texts.

    Attributes:
        name: BLEU, chrF2, chrF2++ or TER.
        score: of the whole corpus, in percent; a TER may be above 100.
        signature: of sacrebleu: all that another needs to get the same figure.
        sums: by which intervals and significance are computed.
        details: what the score is made of, such as the precisions of BLEU.
    """

    name: str
    score: float
    signature: str
    sums: ItemSums
    details: dict[str, Any]


class TranslationMetric:
    """One of sacrebleu's metrics with fixed options, for whole corpora and for single texts."""

    def __init__(self, metric: Any, details: tuple[str, ...]) -> None:
        """Args:
        metric: a ``sacrebleu.metrics`` object.
        details: attributes of its scores to report.
        """
        self._metric = metric
        self._details = details

    def corpus(self, texts: Sequence[str], references: Sequence[Sequence[str]]) -> Scored:
        """The score of a corpus, which is not the mean over its texts.

        Args:
            texts: of the system.
            references: of each text, as many for each.

        Raises:
            DataError: a text has no reference, an empty one, or another number of them.
        """
        count = check_references(texts, references)
        streams = [[own[number] for own in references] for number in range(count)]
        statistics = self._metric._extract_corpus_statistics(texts, streams)
        found = self._metric._aggregate_and_compute(statistics)
        return Scored(
            name=found.name,
            score=float(found.score),
            signature=str(self._metric.get_signature()),
            sums=ItemSums(np.asarray(statistics, np.float64), self._score),
            details={name: getattr(found, name) for name in self._details},
        )

    def sentences(self, texts: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
        """The score of each text by itself, float64 [N], in percent; arguments as of ``corpus``."""
        sums = self.corpus(texts, references).sums
        return np.array([self._score(row) for row in sums.items])

    def _score(self, sums: np.ndarray) -> float:
        return float(self._metric._compute_score_from_stats(sums.tolist()).score)


def bleu(
    *,
    tokenizer: str = "13a",
    lowercase: bool = False,
    smoothing: str = "exp",
    smoothing_value: float | None = None,
    effective_order: bool = False,
    max_order: int = 4,
) -> TranslationMetric:
    """BLEU (Papineni et al. 2002).

    Args:
        tokenizer: of sacrebleu: none, zh, 13a, intl, char; and where their packages are, ja-mecab,
            ko-mecab, flores101, flores200, spBLEU-1K.
        lowercase: score without case.
        smoothing: of orders without a match: none, floor, add-k or exp.
        smoothing_value: of floor (0.1 if None) and add-k (1 if None).
        effective_order: leave out orders longer than the text; only for ``sentences``.
        max_order: longest n-gram.

    Raises:
        ConfigError: sacrebleu is missing, or there is no such tokenizer or smoothing.
    """
    metrics = package("sacrebleu.metrics", "BLEU")
    _one_of("tokenizer", tokenizer, list(metrics.BLEU.TOKENIZERS))
    _one_of("smoothing", smoothing, list(metrics.BLEU.SMOOTH_DEFAULTS))
    if smoothing_value is not None and smoothing not in ("floor", "add-k"):
        raise ConfigError(
            f"smoothing_value is {smoothing_value}; only the smoothings floor and add-k read it"
        )
    if max_order < 1:
        raise ConfigError(f"max_order is {max_order}; it expects at least 1")
    try:
        metric = metrics.BLEU(
            lowercase=lowercase,
            force=True,
            tokenize=tokenizer,
            smooth_method=smoothing,
            smooth_value=smoothing_value,
            max_ngram_order=max_order,
            effective_order=effective_order,
        )
    except (ImportError, RuntimeError, OSError) as error:
        if tokenizer not in _EXTRA_TOKENIZERS:
            raise
        raise ConfigError(
            f"sacrebleu cannot open the tokenizer {tokenizer!r}, which needs packages or files of"
            f" its own ({str(error).strip()}); install them, or use zh, char or intl"
        ) from error
    details = ("precisions", "bp", "sys_len", "ref_len", "counts", "totals")
    return TranslationMetric(metric, details)


def chrf(
    *,
    char_order: int = 6,
    word_order: int = 0,
    beta: int = 2,
    lowercase: bool = False,
    whitespace: bool = False,
) -> TranslationMetric:
    """chrF; chrF++ with ``word_order=2``.

    Args:
        char_order: longest n-gram of characters.
        word_order: longest n-gram of words; 0 for none.
        beta: how much recall counts beside precision.
        lowercase: score without case.
        whitespace: count white space as characters.

    Raises:
        ConfigError: sacrebleu is missing, or an order is out of range.
    """
    metrics = package("sacrebleu.metrics", "chrF")
    if char_order < 1 or word_order < 0 or beta < 1:
        raise ConfigError(
            f"char_order is {char_order}, word_order {word_order} and beta {beta}; they expect at"
            " least 1, 0 and 1"
        )
    metric = metrics.CHRF(
        char_order=char_order,
        word_order=word_order,
        beta=beta,
        lowercase=lowercase,
        whitespace=whitespace,
    )
    return TranslationMetric(metric, ())


def ter(
    *,
    normalized: bool = False,
    punctuation: bool = True,
    asian: bool = False,
    case_sensitive: bool = False,
) -> TranslationMetric:
    """Translation edit rate: edits and shifts for each word of the mean reference; less is better.

    Args:
        normalized: split punctuation from words.
        punctuation: score punctuation.
        asian: split Chinese and Japanese characters; only with ``normalized`` or without
            ``punctuation``.
        case_sensitive: score case.

    Raises:
        ConfigError: sacrebleu is missing, or ``asian`` has no effect.
    """
    metrics = package("sacrebleu.metrics", "TER")
    if asian and not normalized and punctuation:
        raise ConfigError(
            "asian has no effect by itself; set normalized=True or punctuation=False beside it"
        )
    metric = metrics.TER(
        normalized=normalized,
        no_punct=not punctuation,
        asian_support=asian,
        case_sensitive=case_sensitive,
    )
    return TranslationMetric(metric, ("num_edits", "ref_length"))


def _one_of(name: str, value: str, known: list[str]) -> None:
    if value not in known:
        raise ConfigError(f"{name} is {value!r}; it expects one of {', '.join(known)}")
