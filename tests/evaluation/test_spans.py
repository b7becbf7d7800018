"""Spans of words and their F1, against seqeval's rules written out."""

from __future__ import annotations

import pytest

from llm_jax.evaluation.text_metrics.spans import bio_spans, span_scores
from llm_jax.types import DataError


@pytest.mark.parametrize(
    "tags, spans",
    [
        ("O B-a I-a O B-b", [("a", 1, 2), ("b", 4, 4)]),
        ("B-a B-a I-a", [("a", 0, 0), ("a", 1, 2)]),
        # I after O, after another type, and at the start begin a span, as in seqeval.
        ("I-a I-a O I-b", [("a", 0, 1), ("b", 3, 3)]),
        ("B-a I-b I-b", [("a", 0, 0), ("b", 1, 2)]),
        ("O O", []),
    ],
)
def test_where_spans_begin_and_end(tags, spans):
    assert bio_spans(tags.split()) == spans


def test_scores_by_hand():
    """The example of seqeval's README: 1 of 2 spans right and 2 predicted, F1 0.5."""
    truth = [["O", "O", "O", "B-MISC", "I-MISC", "I-MISC", "O"], ["B-PER", "I-PER", "O"]]
    said = [["O", "O", "B-MISC", "I-MISC", "I-MISC", "I-MISC", "O"], ["B-PER", "I-PER", "O"]]
    found = span_scores(truth, said)
    assert (found.precision, found.recall, found.f1) == (0.5, 0.5, 0.5)
    assert (found.support, found.predicted) == (2, 2)
    # 1 right of 3 wanted and of 2 given: 2 · 1 / 5.
    third = span_scores([["B-a", "B-a", "B-b"]], [["B-a", "O", "B-a"]])
    assert third.f1 == pytest.approx(0.4) and third.recall == pytest.approx(1 / 3)
    assert span_scores([["O"]], [["O"]]).f1 == 0


def test_bad_tags_are_named():
    for tag in ("B", "X-a", "B-", "NOUN"):
        with pytest.raises(DataError, match=f"tag 1 is '{tag}'; tags are O"):
            bio_spans(["O", tag])
    with pytest.raises(DataError, match="sentence 0 has 1 tags and 2"):
        span_scores([["O"]], [["O", "O"]])
    with pytest.raises(DataError, match="there are 0 tagged"):
        span_scores([], [])
