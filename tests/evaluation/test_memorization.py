"""Contamination beside brute force, continuations by hand, exposure of canaries."""

import numpy as np
import pytest

from llm_jax.evaluation.memorization import contamination as module
from llm_jax.evaluation.memorization.canaries import exposure, make_canaries
from llm_jax.evaluation.memorization.contamination import contamination
from llm_jax.evaluation.memorization.continuation import (
    common_prefix_length,
    continuation_statistics,
)
from llm_jax.evaluation.text_metrics.words import unicode_words
from llm_jax.types import ConfigError, DataError

ALPHABET = "abcdefghijklmnopqrstuvwxyz"


def test_thirteen_words_in_a_row_contaminate():
    text = list(ALPHABET[:20])
    corpus = [["x", *text[3:16], "y"], ["z"] * 30]
    got = contamination({"quiz": [text, list("abc")]}, corpus)
    found = got.sets["quiz"]
    assert found.overlaps[0] == (8, 1, 13 / 20) and found.contaminated == [0]
    assert (found.rate, found.texts, found.too_short, found.covered) == (1, 1, 1, 13 / 20)
    assert (got.documents, got.tokens, got.signature) == (2, 45, "n:13|share:>0")
    twelve = contamination({"quiz": [text]}, [text[3:15]]).sets["quiz"]
    assert twelve.rate == 0 and twelve.covered == 0


def test_no_ngram_reaches_over_the_end_of_a_document():
    text = list(ALPHABET[:14])
    assert contamination({"s": [text]}, [text[:7], text[7:]]).sets["s"].rate == 0
    assert contamination({"s": [text]}, [text]).sets["s"].covered == 1


def test_sets_have_their_own_rates_and_a_share_may_be_asked_for():
    words = [list(ALPHABET[at : at + 5]) for at in range(20)]
    sets = {"first": words[:10], "second": words[10:], "short": [["a"]]}
    got = contamination(sets, [list("abcdef")], n=3)
    # "abcdef" has abc, bcd, cde, def: of texts from a to d three, three, two, one.
    assert got.sets["first"].contaminated == [0, 1, 2, 3]
    assert (got.sets["first"].rate, got.sets["second"].rate) == (0.4, 0)
    assert got.sets["short"].rate is None and got.sets["short"].too_short == 1
    assert contamination(sets, [list("abcdef")], n=3, share=0.5).sets["first"].rate == 0.3
    assert contamination(sets, [list("abcdef")], n=3, share=0.7).sets["first"].rate == 0.2


def brute_force(texts, corpus, n):
    grams = {tuple(d[at : at + n]) for d in corpus for at in range(len(d) - n + 1)}
    overlaps = []
    for text in texts:
        found = [at for at in range(len(text) - n + 1) if tuple(text[at : at + n]) in grams]
        inside = {at + k for at in found for k in range(n)}
        count = max(0, len(text) - n + 1)
        overlaps.append((count, len(found), len(inside) / len(text) if count else 0.0))
    return overlaps


@pytest.mark.parametrize("collide", [False, True])
@pytest.mark.parametrize("n", [1, 2, 4])
def test_overlaps_are_those_of_brute_force(monkeypatch, n, collide):
    rng = np.random.default_rng(n)
    texts = [rng.integers(0, 6, rng.integers(1, 12)).tolist() for _ in range(60)]
    corpus = [rng.integers(0, 9, rng.integers(0, 40)).astype(np.int32) for _ in range(8)]
    if collide:
        monkeypatch.setattr(
            module, "_hash", lambda grams: (grams.sum(axis=1) % 3).astype(np.uint64)
        )
    got = contamination({"s": texts}, corpus, n=n).sets["s"]
    assert got.overlaps == brute_force(texts, [d.tolist() for d in corpus], n)


def test_words_without_case_and_punctuation():
    text = unicode_words("Era uma vez, em Lisboa: um rio.")
    corpus = [unicode_words("ERA UMA VEZ EM LISBOA — um rio")]
    assert contamination({"s": [text]}, corpus, n=7).sets["s"].rate == 1


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda: contamination({"s": [[1]]}, [], n=0), ConfigError, "n is 0"),
        (lambda: contamination({"s": [[1]]}, [], share=1.0), ConfigError, "share is 1"),
        (lambda: contamination({"s": []}, []), DataError, "no evaluation texts"),
        (lambda: continuation_statistics([], []), DataError, "0 continuations"),
        (lambda: continuation_statistics([[1]], [[1], [2]]), DataError, "1 continuations and 2"),
        (lambda: continuation_statistics([[1]], [[]]), DataError, r"true\[0\] is empty"),
        (
            lambda: continuation_statistics([[1]], [[1]], lengths=(0,)),
            ConfigError,
            r"lengths are \(0,\)",
        ),
        (lambda: exposure(1.0, []), DataError, r"the shape \(0,\)"),
        (lambda: exposure(np.nan, [1.0]), DataError, "NaN"),
        (lambda: make_canaries("no place"), ConfigError, "one {}"),
        (lambda: make_canaries("{}", alphabet="aa"), ConfigError, "different characters"),
        (lambda: make_canaries("{}", inserted=0), ConfigError, "inserted is 0"),
        (lambda: make_canaries("{}", length=1), ConfigError, "there are 10 texts"),
    ],
)
def test_what_cannot_be_measured_is_named(call, error, said):
    with pytest.raises(error, match=said):
        call()


def test_leading_tokens_that_agree():
    assert common_prefix_length([1, 2, 3], [1, 2, 4]) == 2
    assert common_prefix_length([1, 2], [1, 2, 4]) == 2
    assert common_prefix_length([], [1]) == 0
    assert common_prefix_length(np.array([5]), [4]) == 0


def test_continuations_by_hand():
    true = [list(range(12)), list(range(12)), list(range(4)), list(range(12))]
    given = [list(range(12)), [0, 1, 2, 9, 4], [0, 1, 2, 3, 99], [7]]
    got = continuation_statistics(given, true, lengths=(3, 10, 50))
    assert got.lengths.tolist() == [12, 3, 4, 0]
    assert (got.mean.value, got.median, got.longest, got.whole) == (4.75, 3.5, 12, 0.5)
    assert got.extracted[3].value == 0.75
    # The third text is shorter than ten tokens.
    assert got.extracted[10].value == pytest.approx(1 / 3) and got.extracted[10].items == 3
    assert got.extracted[50] is None


def test_exposure_by_hand():
    references = [float(loss) for loss in range(1, 8)]
    assert exposure(0.5, references) == (1, 3.0, 3.0)
    assert exposure(99.0, references) == (8, 0.0, 3.0)
    assert exposure(3.5, references) == (4, 1.0, 3.0)
    # A reference as likely as the canary ranks before it.
    assert exposure(1.0, references).rank == 2


def test_a_canary_that_was_not_memorized_has_the_exposure_of_chance():
    rng = np.random.default_rng(0)
    found = [exposure(rng.normal(), rng.normal(size=1023)).exposure for _ in range(1500)]
    assert np.mean(found) == pytest.approx(1 / np.log(2), abs=0.12)


def test_canaries_are_different_and_seeded():
    options = {"inserted": 3, "references": 7, "length": 1}
    got = make_canaries("The code is {}.", **options)
    assert got == make_canaries("The code is {}.", **options) and got.space == 10
    assert len({*got.inserted, *got.references}) == 10 and len(got.inserted) == 3
    assert all(text.startswith("The code is ") and text[-2].isdigit() for text in got.inserted)
    assert make_canaries("{}", seed=1) != make_canaries("{}", seed=2)
