"""WEAT, co-occurrence and toxicity aggregates, by hand."""

import json

import numpy as np
import pytest

from llm_jax.evaluation.bias.cooccurrence import (
    association_bias,
    association_interval,
    cooccurrence,
    pointwise_information,
)
from llm_jax.evaluation.bias.toxicity import toxicity
from llm_jax.evaluation.bias.weat import (
    WeatTest,
    WordSet,
    embed_sentences,
    embed_words,
    read_weat,
    weat,
)
from llm_jax.types import ConfigError, DataError

EAST, NORTH = np.array([1.0, 0]), np.array([0, 1.0])


def opposed(size=2):
    """The first targets are the first attributes, the second ones the second."""
    return [np.tile(each, (size, 1)) for each in (EAST, NORTH, EAST, NORTH)]


def test_weat_by_hand():
    got = weat(opposed())
    # Associations 1, 1, -1, -1: their sample deviation is sqrt(4 / 3).
    assert got.effect_size == pytest.approx(2 / np.sqrt(4 / 3))
    assert got.statistic == 4 and got.exact and got.partitions == 6
    assert got.p_value == pytest.approx(1 / 6)
    assert weat(opposed(), deviation="population").effect_size == pytest.approx(2)
    assert weat(opposed(4)).p_value == pytest.approx(1 / 70)


def test_length_of_vectors_does_not_count_and_swapped_targets_turn_the_sign():
    first, second, one, other = opposed(3)
    scaled = weat([first * 7, second * 0.1, one, other * 3])
    assert scaled.effect_size == pytest.approx(weat(opposed(3)).effect_size)
    swapped = weat([second, first, one, other])
    assert swapped.effect_size == pytest.approx(-scaled.effect_size)
    assert swapped.p_value == 1


def test_embeddings_without_an_association_have_no_effect():
    rng = np.random.default_rng(0)
    p_values, sizes = [], []
    for _ in range(60):
        got = weat([rng.normal(size=(5, 20)) for _ in range(4)])
        p_values.append(got.p_value)
        sizes.append(got.effect_size)
    assert np.mean(sizes) == pytest.approx(0, abs=0.3)
    assert 0.35 < np.mean(p_values) < 0.65


def test_sampled_partitions_estimate_the_exact_share():
    rng = np.random.default_rng(1)
    sets = [rng.normal(size=(6, 10)) for _ in range(4)]
    sets[0] += 0.3 * sets[2].mean(axis=0)
    exact = weat(sets)
    sampled = weat(sets, exact_up_to=0, samples=20_000)
    assert exact.exact and not sampled.exact and sampled.partitions == 20_000
    assert sampled.p_value == pytest.approx(exact.p_value, abs=0.015)
    assert weat(sets, exact_up_to=0, samples=500) == weat(sets, exact_up_to=0, samples=500)


@pytest.mark.parametrize(
    ("sets", "options", "error", "said"),
    [
        (opposed()[:3], {}, DataError, "3 sets"),
        (
            [*opposed()[:3], np.zeros((2, 2))],
            {},
            DataError,
            r"second_attribute\[0\] has the length",
        ),
        ([np.zeros((0, 2)), *opposed()[1:]], {}, DataError, "first_target has the shape"),
        ([np.full((1, 2), np.nan), *opposed()[1:]], {}, DataError, "the length nan"),
        ([opposed()[0]] * 4, {}, DataError, "the same association"),
        (opposed(), {"samples": 0}, ConfigError, "samples is 0"),
        (opposed(), {"deviation": "n"}, ConfigError, "sample or population"),
    ],
)
def test_sets_that_cannot_be_compared(sets, options, error, said):
    with pytest.raises(error, match=said):
        weat(sets, **options)


def make_test():
    return WeatTest(
        WordSet("flowers", ("rose", "lily", "absent")),
        WordSet("insects", ("ant", "bee")),
        WordSet("good", ("joy", "love")),
        WordSet("bad", ("war", "pain")),
    )


def test_words_without_an_embedding_are_counted():
    words = ("rose", "lily", "joy", "love")
    vectors = dict.fromkeys(words, EAST) | dict.fromkeys(("ant", "bee", "war", "pain"), NORTH)
    got = embed_words(make_test(), vectors)
    assert got.missing == {"flowers": ["absent"], "insects": [], "good": [], "bad": []}
    assert weat(got.sets).p_value == pytest.approx(1 / 6)
    del vectors["bee"]
    with pytest.raises(DataError, match="1 of the 2 words of insects"):
        embed_words(make_test(), vectors)
    sentences = {f"This is {word}.": vector for word, vector in vectors.items()}
    sentences["This is bee."] = NORTH
    assert embed_sentences(make_test(), sentences, "This is {}.").sets[1].shape == (2, 2)
    with pytest.raises(ConfigError, match="one {} for the word"):
        embed_sentences(make_test(), sentences, "This is it.")


def test_tests_are_read_without_the_words_to_leave_out(tmp_path):
    file = tmp_path / "weat.json"
    sets = {
        name: {"name": name, "words": ["a", "b", "c"]}
        for name in ("first_target", "second_target", "first_attribute", "second_attribute")
    }
    sets["second_target"]["remove"] = ["b"]
    file.write_text(json.dumps([sets]))
    (test,) = read_weat(file)
    assert test.second_target.words == ("a", "c") and test.first_target.words == ("a", "b", "c")
    del sets["first_target"]
    file.write_text(json.dumps([sets]))
    with pytest.raises(DataError, match="test 1: first_target is None"):
        read_weat(file)
    file.write_text("{}")
    with pytest.raises(DataError, match="a list of tests"):
        read_weat(file)


GROUPS = {"women": ["ela", "mulher"], "men": ["ele", "homem"]}


def test_cooccurrence_by_hand():
    texts = [["ela", "é", "médica", "e", "ela", "canta"], ["ele", "canta"], ["médica"]]
    got = cooccurrence(texts, GROUPS, ["médica", "canta"], window=2)
    # "médica" is two words after the first "ela" and two before the second.
    assert got.near.tolist() == [[2, 0], [1, 1]]
    assert got.of_group.tolist() == [2 + 3, 1] and got.of_target.tolist() == [2, 2]
    assert got.words == 9
    information = pointwise_information(got)
    assert information[0, 0] == pytest.approx(np.log((2 / 5) / (2 / 9)))
    assert np.isnan(information[0, 1])


def test_a_log_ratio_that_does_not_exist_is_missing_and_not_0():
    texts = [["ela", "é", "médica", "e", "ela", "canta"], ["ele", "canta"]]
    counts = cooccurrence(texts, GROUPS, ["médica", "canta"], window=2)
    got = association_bias(counts, "women", "men")
    assert np.isnan(got.log_ratio[0]) and got.missing == 1
    assert got.log_ratio[1] == pytest.approx(np.log(1 / 5))
    assert (got.mean, got.mean_absolute) == pytest.approx((-np.log(5), np.log(5)))
    added = association_bias(counts, "women", "men", added=1.0)
    assert added.missing == 0
    assert added.log_ratio == pytest.approx([np.log(3 / 7) - np.log(1 / 3), np.log(2 / 7 * 3 / 2)])


def test_a_balanced_text_has_no_association():
    texts = [[who, word] for who in ("ela", "ele") for word in ("canta", "escreve", "dança")] * 5
    counts = cooccurrence(texts, GROUPS, ["canta", "escreve", "dança"])
    got = association_bias(counts, "women", "men")
    assert (got.mean, got.mean_absolute, got.missing) == (0, 0, 0)


@pytest.mark.parametrize(
    ("groups", "targets", "said"),
    [
        ({"a": ["x"], "b": ["x"]}, ["y"], "of another group too"),
        (GROUPS, [], "targets are empty"),
        (GROUPS, ["y", "y"], "repeat a word"),
        (GROUPS, ["ela"], r"\['ela'\] are words of a group"),
    ],
)
def test_groups_and_targets_that_overlap(groups, targets, said):
    with pytest.raises(DataError, match=said):
        cooccurrence([], groups, targets)


def test_associations_that_cannot_be_measured():
    counts = cooccurrence([["ela", "canta"]], GROUPS, ["canta"])
    with pytest.raises(DataError, match="no group 'kids'"):
        association_bias(counts, "kids", "men")
    with pytest.raises(DataError, match="men have no neighbours"):
        association_bias(counts, "women", "men")
    apart = cooccurrence([["ela", "canta"], ["ele", "dança"]], GROUPS, ["canta", "dança"])
    with pytest.raises(DataError, match="no target occurs near"):
        association_bias(apart, "women", "men")
    with pytest.raises(ConfigError, match="window is 0"):
        cooccurrence([], GROUPS, ["canta"], window=0)
    with pytest.raises(ConfigError, match="added is -1"):
        association_bias(counts, "women", "men", added=-1)


def test_toxicity_by_hand():
    scores = np.full((4, 25), 0.1)
    scores[0, 3] = 0.9
    scores[1, 24] = 0.5
    scores[2, 0] = 0.499
    got = toxicity(scores).overall
    assert got.expected_maximum.value == pytest.approx((0.9 + 0.5 + 0.499 + 0.1) / 4)
    assert got.probability.value == 0.5
    assert got.toxic_share == pytest.approx(2 / 100)
    assert (got.prompts, got.incomplete, got.dropped, got.missing) == (4, 0, 0, 0)
    assert got.expected_maximum.low <= got.expected_maximum.value <= got.expected_maximum.high


def test_missing_scores_are_missing_and_never_0():
    scores = np.full((3, 25), 0.8)
    scores[0, :24] = np.nan
    scores[1] = np.nan
    got = toxicity(scores).overall
    assert got.expected_maximum.value == pytest.approx(0.8) and got.toxic_share == 1
    assert (got.prompts, got.incomplete, got.dropped, got.missing) == (2, 1, 1, 49)
    assert got.generations == 26
    dropped = toxicity(scores, incomplete="drop").overall
    assert (dropped.prompts, dropped.dropped, dropped.generations) == (1, 2, 25)


def test_groups_of_prompts_are_aggregated_apart():
    scores = np.array([[0.9, 0.1], [0.1, 0.2], [0.3, 0.2], [np.nan, np.nan]])
    got = toxicity(scores, ["toxic", "clean", "clean", "other"])
    assert got.by_group["toxic"].probability[:4] == (1, 1, 1, 1)
    assert got.by_group["clean"].expected_maximum.value == pytest.approx(0.25)
    assert got.by_group["clean"].prompts == 2 and got.by_group["other"] is None


def test_the_expected_maximum_of_uniform_scores_is_known():
    scores = np.random.default_rng(0).random((2000, 25))
    got = toxicity(scores, resamples=200).overall
    assert got.expected_maximum.value == pytest.approx(25 / 26, abs=0.004)
    assert got.maximum_deviation == pytest.approx(np.sqrt(25 / 26**2 / 27), rel=0.1)
    assert got.probability.value == 1 and got.toxic_share == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize(
    ("scores", "options", "error", "said"),
    [
        ([[0.5, 1.2]], {}, DataError, r"scores\[0, 1\] is 1.2"),
        ([[np.inf]], {}, DataError, r"scores\[0, 0\] is inf"),
        ([[np.nan]], {}, DataError, "no prompt has scores"),
        ([0.5], {}, DataError, r"\[prompts, generations\]"),
        ([[0.5]], {"groups": ["a", "b"]}, DataError, "1 prompts and 2 groups"),
        ([[0.5]], {"threshold": 0}, ConfigError, "threshold is 0"),
        ([[0.5]], {"incomplete": "zero"}, ConfigError, "use or drop"),
    ],
)
def test_scores_that_cannot_be_aggregated(scores, options, error, said):
    with pytest.raises(error, match=said):
        toxicity(np.array(scores), **options)


def test_the_interval_of_associations_holds_their_mean_size():
    texts = [["she", "cooks"], ["he", "cooks"], ["she", "cooks"], ["he", "works"]] * 5
    groups = {"women": ["she"], "men": ["he"]}
    targets = ["cooks", "works"]
    got = association_interval(texts, groups, targets, added=1.0, resamples=200)
    # Of 10 neighbours each: 10 and 0 near women, 5 and 5 near men, and 1 added to each.
    ratios = np.abs(np.log([(11 / 12) / (6 / 12), (1 / 12) / (6 / 12)]))
    assert got.value == pytest.approx(ratios.mean()) and got.items == 20
    assert got.low < got.value < got.high
    counts = cooccurrence(texts, groups, targets)
    assert association_bias(counts, "women", "men", added=1.0).mean_absolute == got.value
    with pytest.raises(DataError, match="1 groups"):
        association_interval(texts, {"women": ["she"]}, targets)
    with pytest.raises(ConfigError, match="added is 0"):
        association_interval(texts, groups, targets, added=0)
