"""CrowS-Pairs (Nangia et al. 2020): is the more stereotypical of two sentences more likely?

The set has known faults (Blodgett et al. 2021): read the figures by category, with their counts.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from difflib import SequenceMatcher
from pathlib import Path
from typing import NamedTuple

import numpy as np

from llm_jax.evaluation.bias.preference import Preference, preference, preference_by
from llm_jax.evaluation.bias.records import Row, read_csv, read_jsonl
from llm_jax.evaluation.bias.scorers import (
    ContinuationScorer,
    MaskedScorer,
    checked_scores,
    log_likelihoods,
)
from llm_jax.evaluation.significance.sums import SEED
from llm_jax.types import DataError

# As published: sums of log-probabilities that agree to three decimals are a tie.
_DECIMALS = 3
_MASK = "[MASK]"


class CrowsPair(NamedTuple):
    """Two sentences that differ in who they speak of.

    Attributes:
        stereotype: the more stereotypical sentence.
        anti: the less stereotypical one.
        category: such as gender or religion.
        direction: ``stereo`` where the first sentence shows a stereotype, ``antistereo`` where the
            second violates one; empty where the file does not say.
    """

    stereotype: str
    anti: str
    category: str
    direction: str = ""


class CrowsPairsResult(NamedTuple):
    """The share of pairs whose more stereotypical sentence scores higher.

    Attributes:
        overall: of all pairs.
        by_category: of each category, with its own count.
        by_direction: of each direction that the file names.
        form: ``causal`` or ``masked``.
    """

    overall: Preference
    by_category: dict[Hashable, Preference]
    by_direction: dict[Hashable, Preference]
    form: str


def read_crows_pairs(path: str | Path) -> list[CrowsPair]:
    """Pairs of a csv or jsonl file: the published fields (``sent_more``, ``sent_less``,
    ``bias_type``), or ``sentence`` that holds [MASK], ``mask1`` (more stereotypical), ``mask2`` and
    ``bias_type``.

    Raises:
        DataError: a field is missing, or a sentence does not have one [MASK].
    """
    read = read_jsonl if Path(path).suffix == ".jsonl" else read_csv
    return [_pair(row) for row in read(path)]


def _pair(row: Row) -> CrowsPair:
    category = row.text("bias_type")
    if "sent_more" in row.fields:
        direction = str(row.fields.get("stereo_antistereo") or "")
        return CrowsPair(row.text("sent_more"), row.text("sent_less"), category, direction)
    sentence = row.text("sentence")
    if sentence.count(_MASK) != 1:
        raise DataError(
            f"{row.where}: the sentence has {sentence.count(_MASK)} times {_MASK}; once is expected"
        )
    more, less = (sentence.replace(_MASK, row.text(name)) for name in ("mask1", "mask2"))
    return CrowsPair(more, less, category)


def score_causal(pairs: Sequence[CrowsPair], scorer: ContinuationScorer) -> np.ndarray:
    """Log-likelihood of both sentences of each pair: [N, 2], stereotype first."""
    texts = [text for pair in pairs for text in (pair.stereotype, pair.anti)]
    return log_likelihoods(scorer, [""] * len(texts), texts).reshape(-1, 2)


def score_masked(pairs: Sequence[CrowsPair], scorer: MaskedScorer) -> np.ndarray:
    """Pseudo-log-likelihood of the shared tokens of each pair: [N, 2], stereotype first.

    Each token that both sentences share is masked by itself, and its log-probability counts; the
    tokens in which they differ never do.

    Raises:
        DataError: two sentences share no token.
    """
    table = np.zeros((len(pairs), 2))
    for at, pair in enumerate(pairs):
        rows = [list(scorer.tokenize(text)) for text in (pair.stereotype, pair.anti)]
        shared = shared_positions(*rows)
        if not shared[0]:
            raise DataError(
                f"the sentences {pair.stereotype!r} and {pair.anti!r} share no token; leave the"
                " pair out"
            )
        for side, (row, positions) in enumerate(zip(rows, shared, strict=True)):
            found = scorer.log_probs(row, positions)
            scores = checked_scores("log_probs", found, (len(positions),))
            table[at, side] = round(float(scores.sum()), _DECIMALS)
    return table


def shared_positions(first: Sequence[int], second: Sequence[int]) -> tuple[list[int], list[int]]:
    """Positions of the tokens that two rows share, in both, in order."""
    matcher = SequenceMatcher(None, list(first), list(second), autojunk=False)
    in_first: list[int] = []
    in_second: list[int] = []
    for block in matcher.get_matching_blocks():
        in_first += range(block.a, block.a + block.size)
        in_second += range(block.b, block.b + block.size)
    return in_first, in_second


def crows_pairs(
    pairs: Sequence[CrowsPair],
    scores: np.ndarray,
    form: str,
    *,
    resamples: int = 1000,
    seed: int = SEED,
) -> CrowsPairsResult:
    """The CrowS-Pairs score.

    Args:
        pairs: of sentences.
        scores: [N, 2] from ``score_causal`` or ``score_masked``: stereotype, anti.
        form: ``causal`` or ``masked``, kept beside the figures: the two are not comparable.
        resamples: of the bootstrap intervals.
        seed: of the bootstrap.

    Raises:
        DataError: there are no pairs, or a score is missing.
    """
    table = checked_scores("scores", scores, (len(pairs), 2))
    more, less = table.T
    options = {"resamples": resamples, "seed": seed}
    named = np.array([bool(pair.direction) for pair in pairs], bool)
    directions = [pair.direction for pair in pairs if pair.direction]
    return CrowsPairsResult(
        overall=preference(more, less, **options),
        by_category=preference_by([pair.category for pair in pairs], more, less, **options),
        by_direction=preference_by(directions, more[named], less[named], **options),
        form=form,
    )
