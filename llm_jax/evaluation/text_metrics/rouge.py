"""ROUGE by the package rouge-score, with its own words or those of any language (Lin 2004)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from llm_jax.evaluation.significance.intervals import Interval, interval_of_sums
from llm_jax.evaluation.significance.sums import SEED, ItemSums, means
from llm_jax.evaluation.text_metrics.references import check_references, package
from llm_jax.evaluation.text_metrics.words import unicode_words
from llm_jax.types import ConfigError

Words = Literal["rouge_score", "unicode"]
KINDS = ("rouge1", "rouge2", "rougeL", "rougeLsum")


class UnicodeTokenizer:
    """What rouge-score asks of a tokenizer, with the words of any language."""

    def tokenize(self, text: str) -> list[str]:
        return unicode_words(text)


class RougeScore(NamedTuple):
    """One kind of ROUGE over a corpus.

    Attributes:
        precision: mean over the texts, 0 to 1.
        recall: mean over the texts, 0 to 1.
        f: mean F1 over the texts with its bootstrap interval, 0 to 1.
        sums: of F1, by which significance is computed.
    """

    precision: float
    recall: float
    f: Interval
    sums: ItemSums


class RougeResult(NamedTuple):
    """ROUGE of a system's texts.

    Attributes:
        scores: by kind.
        signature: all that another needs to get the same figures.
    """

    scores: dict[str, RougeScore]
    signature: str


def rouge(
    texts: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    kinds: Sequence[str] = KINDS,
    words: Words = "rouge_score",
    stemmer: bool = False,
    resamples: int = 1000,
    seed: int = SEED,
) -> RougeResult:
    """ROUGE of texts; of several references the one with the highest F1 counts, by kind.

    Args:
        texts: of the system.
        references: of each text, as many for each.
        kinds: rouge1 to rouge9, rougeL (the whole text), rougeLsum (sentences, one a line).
        words: ``rouge_score`` keeps a-z and 0-9 only, so that a text in another script has no words
            at all; ``unicode`` has the words of any language.
        stemmer: Porter's, for English and the words of rouge_score.
        resamples: of the bootstrap interval of F1.
        seed: of the bootstrap.

    Raises:
        ConfigError: rouge-score is missing, or an option is not known or has no effect.
        DataError: a text has no reference, an empty one, or another number of them.
    """
    count = check_references(texts, references)
    scorer = _scorer(kinds, words, stemmer)
    found = [
        scorer.score_multi(list(own), text) for text, own in zip(texts, references, strict=True)
    ]
    options = {"resamples": resamples, "seed": seed}
    scores = {kind: _mean([each[kind] for each in found], **options) for kind in kinds}
    signature = "|".join(
        (
            f"nrefs:{count}",
            f"tok:{words}",
            f"stem:{'porter' if stemmer else 'no'}",
            "multi:max-f",
            "lsum:newline",
            f"bs:{resamples}",
            f"seed:{seed}",
            f"version:rouge-score-{version('rouge-score')}",
        )
    )
    return RougeResult(scores, signature)


def _mean(found: list[Any], resamples: int, seed: int) -> RougeScore:
    table = np.array(found, np.float64)
    sums = means(table[:, 2], "F1")
    return RougeScore(
        precision=float(table[:, 0].mean()),
        recall=float(table[:, 1].mean()),
        f=interval_of_sums(sums, resamples=resamples, seed=seed),
        sums=sums,
    )


def _scorer(kinds: Sequence[str], words: str, stemmer: bool) -> Any:
    if words not in get_args(Words):
        known = ", ".join(get_args(Words))
        raise ConfigError(f"words is {words!r}; it expects one of {known}")
    for kind in kinds:
        if not re.fullmatch(r"rouge([1-9]|L|Lsum)", kind):
            raise ConfigError(
                f"kinds has {kind!r}; it expects rouge1 to rouge9, rougeL and rougeLsum"
            )
    if not kinds:
        raise ConfigError(f"kinds is empty; it expects some of {', '.join(KINDS)}")
    if stemmer and words != "rouge_score":
        raise ConfigError(
            "stemmer=True is Porter's stemmer of English words; it expects words='rouge_score'"
        )
    module = package("rouge_score.rouge_scorer", "ROUGE")
    tokenizer = UnicodeTokenizer() if words == "unicode" else None
    return module.RougeScorer(list(kinds), use_stemmer=stemmer, tokenizer=tokenizer)
