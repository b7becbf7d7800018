"""Kneser–Ney against its definition with dictionaries, against sums of 1, and against KenLM."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict

import numpy as np
import pytest

from llm_jax.classic import KENLM_FALLBACK, train_kneser_ney
from llm_jax.classic.kneser_ney import estimate_discounts
from llm_jax.classic.ngram_counts import count_ngrams, token_stream
from llm_jax.types import ConfigError, DataError

START = "start"
END = 0


class ByDefinition:
    """Kneser–Ney one n-gram at a time (Chen & Goodman 1998, section 4.1.6)."""

    def __init__(self, documents, equal, order):
        self.equal = equal
        seen = Counter()
        for document in documents:
            tokens = (START, *document)
            for n in range(1, order + 1):
                seen.update(tokens[i : i + n] for i in range(len(tokens) - n + 1))
        before = defaultdict(set)
        for ngram in seen:
            before[ngram[1:]].add(ngram[0])
        self.counts = [
            {
                g: c if n == order or g[0] == START else len(before[g])
                for g, c in seen.items()
                if len(g) == n and g != (START,)
            }
            for n in range(1, order + 1)
        ]
        self.discounts = [self.estimate(counts) for counts in self.counts]

    def estimate(self, counts):
        of_count = Counter(counts.values())
        if not (of_count[1] and of_count[2] and of_count[3]):
            return KENLM_FALLBACK
        y = of_count[1] / (of_count[1] + 2 * of_count[2])
        found = tuple(k - (k + 1) * y * of_count[k + 1] / of_count[k] for k in (1, 2, 3))
        in_range = all(0 <= d <= k for k, d in enumerate(found, 1))
        return found if in_range else KENLM_FALLBACK

    def probability(self, token, context):
        """p of a token after the tokens of a context, which may begin with START."""
        shorter = self.equal
        if context:
            shorter = self.probability(token, context[1:])
        if len(context) >= len(self.counts):
            return shorter
        counts = self.counts[len(context)]
        discounts = self.discounts[len(context)]
        after = {g[-1]: c for g, c in counts.items() if g[:-1] == context}
        if not after:
            return shorter
        total = sum(after.values())
        taken = {w: discounts[min(c, 3) - 1] for w, c in after.items()}
        kept = after.get(token, 0) - taken.get(token, 0)
        return (kept + sum(taken.values()) * shorter) / total


def random_documents(seed: int, vocab_size: int = 12) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, 12, 40)
    weights = 1 / np.arange(1, vocab_size + 1)
    weights /= weights.sum()
    return [rng.choice(vocab_size, length, p=weights) for length in lengths]


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("smooth_over", ["all", "seen"])
def test_every_probability_is_that_of_the_definition(order, smooth_over):
    vocab_size = 15
    documents = random_documents(order)
    seen = len(set(np.concatenate(documents).tolist()))
    equal = 1 / vocab_size if smooth_over == "all" else 1 / (seen + 1)
    expected = ByDefinition([d.tolist() for d in documents], equal, order)
    model = train_kneser_ney(
        documents, vocab_size, order=order, smooth_over=smooth_over, fallback=KENLM_FALLBACK
    )
    assert np.array(model.discounts) == pytest.approx(np.array(expected.discounts))
    # Contexts that were seen, in part and not at all; 12 to 14 are in no document.
    contexts = [(), (1,), (0, 1), (2, 0), (13,), (0, 13), (13, 0, 1), (0, 0, 0, 1, 2), (11, 10, 9)]
    for context in contexts:
        for at_start in (True, False):
            before = (START, *context) if at_start else context
            nearest = before[len(before) - min(order - 1, len(before)) :]
            found = model.distribution(np.array(context, int), at_start=at_start)
            wanted = [expected.probability(token, nearest) for token in range(vocab_size)]
            assert found == pytest.approx(wanted, abs=1e-12), (context, at_start)


@pytest.mark.parametrize("seed", range(5))
def test_probabilities_after_every_context_sum_to_one(seed):
    documents = random_documents(seed)
    model = train_kneser_ney(documents, 20, order=4, fallback=KENLM_FALLBACK)
    contexts = {tuple(d[max(i - 4, 0) : i]) for d in documents for i in range(len(d) + 1)}
    for context in contexts:
        for at_start in (True, False):
            total = model.distribution(np.array(context, int), at_start=at_start).sum()
            assert total == pytest.approx(1)


def test_ids_that_occur_and_one_unknown_sum_to_one():
    documents = random_documents(0)
    seen = sorted(set(np.concatenate(documents).tolist()))
    model = train_kneser_ney(documents, 20, order=3, smooth_over="seen", fallback=KENLM_FALLBACK)
    for context in ([], [0], [0, 1], [19, 0]):
        after = model.distribution(np.array(context, int))
        unknown = np.delete(after, seen)
        assert unknown == pytest.approx(unknown[0])
        assert after[seen].sum() + unknown[0] == pytest.approx(1)


@pytest.mark.parametrize("order", [1, 3, 5])
def test_scores_of_documents_are_the_distributions_token_by_token(order):
    model = train_kneser_ney(random_documents(1), 12, order=order, fallback=KENLM_FALLBACK)
    others = [*random_documents(2)[:6], np.array([], int), np.array([11, 11, 11, 0, 1])]
    wanted = [
        math.log(model.distribution(document[:i])[token])
        for document in others
        for i, token in enumerate(document)
    ]
    assert model.log_probabilities(others) == pytest.approx(wanted)


def test_a_bigram_model_by_hand():
    """Documents "1 2" and "2 2", discounts 1/2, 1 and 3/2."""
    documents = [np.array([1, 2]), np.array([2, 2])]
    model = train_kneser_ney(documents, 4, order=2, fallback=KENLM_FALLBACK)
    # 1 follows the start; 2 follows 1, the start and 2: continuation counts 1 and 3, of 4.
    # The discounts 1/2 and 3/2 leave 2/4 to be shared by 4 ids.
    alone = [1 / 8, 1 / 8 + 1 / 8, 3 / 8 + 1 / 8, 1 / 8]
    assert model.distribution(np.array([]), at_start=False) == pytest.approx(alone)
    # After 1 there was 2, once: it keeps 1/2 and the rest is as without a context.
    after_1 = [1 / 16, 1 / 8, 1 / 2 + 1 / 4, 1 / 16]
    assert model.distribution(np.array([1])) == pytest.approx(after_1)
    # 3 was never seen, and says nothing.
    assert model.distribution(np.array([3])) == pytest.approx(alone)
    assert model.fallback_orders == (1, 2)
    assert model.train_tokens == 4


def skewed_sentences(count: int = 400) -> list[list[int]]:
    """Sentences of 0 to 8 words by a linear congruential generator, small numbers the most."""
    state = 1

    def below(limit: int) -> int:
        nonlocal state
        state = (1103515245 * state + 12345) % 2**31
        return (state >> 12) % limit

    def word() -> int:
        return below(1 + below(1 + below(90)))

    return [[word() for _ in range(below(9))] for _ in range(count)]


# What KenLM's lmplz -o 3 (August 2026) writes of these sentences, as words w0, w1, …: log10 p of
# the last word, and the log10 backoff, which n-grams of the highest order lack.
KENLM_DISCOUNTS = [
    (0.3, 1.48571, 1.2),
    (0.668122, 0.874741, 1.66376),
    (0.849296, 1.57138, 0.735211),
]
KENLM_NGRAMS = [(68, 1), (741, 2), (1348, 3)]
KENLM_ENTRIES = """
    -2.8162239 <unk> 0
    0 <s> -0.74044967
    -1.129998 </s> 0
    -1.2577622 w0 -0.5094743
    -1.5490211 w7 -0.3602275
    -0.8968247 <s> </s> 0
    -0.7615518 w0 </s> 0
    -0.70481706 w3 </s> 0
    -0.9454564 <s> w0 -0.31147027
    -1.0498596 w1 w0 -0.081065685
    -1.0601431 w0 w0 -0.15045859
    -0.39521742 w2 w0 </s>
    -0.67479575 <s> w0 w0
    -1.1039215 w0 w0 w0
    -1.0820401 <s> w2 w0
    -0.9882281 w0 w1 w2
"""


def test_kenlm_estimates_the_same():
    # </s> is 0, w0 is 1, and so on; 98 and 99 stand for words that do not occur.
    documents = [np.array([*(word + 1 for word in s), END]) for s in skewed_sentences()]
    model = train_kneser_ney(documents, 100, order=3, smooth_over="seen")
    assert np.array(model.discounts) == pytest.approx(np.array(KENLM_DISCOUNTS), abs=5e-6)
    occurring = len(set(np.concatenate(documents).tolist()))
    # KenLM counts <unk> and <s> among the unigrams.
    types = [occurring + 2, *(len(table.keys) for table in model.tables[1:])]
    assert [(count, n) for n, count in enumerate(types, 1)] == KENLM_NGRAMS
    ids = {"</s>": END, "<unk>": 99}
    for line in KENLM_ENTRIES.strip().splitlines():
        figures = [field for field in line.split() if field[0] in "-0123456789"]
        words = [field for field in line.split() if field[0] in "<w"]
        at_start = words[0] == "<s>"
        tokens = [ids.get(w, int(w[1:]) + 1 if w[0] == "w" else END) for w in words if w != "<s>"]
        if tokens:
            context = np.array(tokens[:-1], int)
            after = model.distribution(context, at_start=at_start)
            assert math.log10(after[tokens[-1]]) == pytest.approx(float(figures[0]), abs=1e-6), line
        if len(figures) > 1:
            # What an unknown word keeps of its probability is γ.
            shorter = model.distribution(np.array(tokens[1:], int), at_start=False)
            if at_start:
                shorter = model.distribution(np.array(tokens, int), at_start=False)
            longer = model.distribution(np.array(tokens, int), at_start=at_start)
            ratio = math.log10(longer[98] / shorter[98])
            assert ratio == pytest.approx(float(figures[1]), abs=1e-6), line


def test_discounts_by_the_formula():
    # Four n-grams occur once, two twice, one three times, one four times: Y = 4 / (4 + 2 · 2).
    counts = np.array([1, 1, 1, 1, 2, 2, 3, 4, 9])
    expected = (1 - 2 * 0.5 * 2 / 4, 2 - 3 * 0.5 * 1 / 2, 3 - 4 * 0.5 * 1 / 1)
    assert estimate_discounts(counts, 2) == pytest.approx(expected)


def test_no_ngram_crosses_into_the_next_document():
    stream = token_stream([np.array([1, 2]), np.array([], int), np.array([2])], 3)
    assert stream.ids.tolist() == [3, 1, 2, 3, 3, 2]
    pairs, triples = count_ngrams(stream, 3)
    assert [(k // 4, k % 4) for k in pairs.keys.tolist()] == [(1, 2), (3, 1), (3, 2)]
    assert triples.types == 1 and triples.starts_document.tolist() == [True]


@pytest.mark.parametrize(
    ("documents", "settings", "error", "message"),
    [
        ([[0, 5]], {}, DataError, "document 0 has the token id 5; ids must be from 0 to 4"),
        ([[0], [-1]], {}, DataError, "document 1 has the token id -1"),
        ([[0.5]], {}, DataError, "document 0 is an array of float64"),
        ([[[0]]], {}, DataError, "of shape (1, 1)"),
        ([], {}, DataError, "the documents have no tokens"),
        ([[], []], {}, DataError, "the documents have no tokens"),
        ([[0, 1]], {}, DataError, "the discounts of 1-grams cannot be estimated: none has a count"),
        ([[0]], {"order": 0}, ConfigError, "order is 0; it must be at least 1"),
        ([[0]], {"smooth_over": "none"}, ConfigError, "smooth_over is 'none'"),
        ([[0]], {"fallback": (1.5, 1, 1)}, ConfigError, "fallback is (1.5, 1, 1)"),
        ([[0]], {"fallback": (0.5, 1)}, ConfigError, "it must be three discounts"),
    ],
)
def test_what_cannot_be_counted_is_named(documents, settings, error, message):
    with pytest.raises(error, match=re.escape(message)):
        train_kneser_ney([np.array(d) for d in documents], 5, **settings)


def test_a_discount_out_of_range_is_named():
    # One n-gram occurs once, one twice and ten three times: 2 - 3 · 1/3 · 10 is negative.
    with pytest.raises(DataError, match=re.escape("3-grams with a count of 2 would be -8.000")):
        estimate_discounts(np.array([1, 2, *[3] * 10]), 3)


def test_a_document_with_an_unknown_id_is_not_scored():
    model = train_kneser_ney([np.array([0, 1])], 2, fallback=KENLM_FALLBACK)
    with pytest.raises(DataError, match="document 0 has the token id 2"):
        model.log_probabilities([np.array([2])])
