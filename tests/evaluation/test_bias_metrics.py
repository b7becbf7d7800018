"""Bias metrics on synthetic models whose value is known: unbiased, always biased, random, ideal."""

import json

import numpy as np
import pytest

from llm_jax.evaluation.bias.bbq import (
    BBQItem,
    ambiguous_bias_score,
    bbq,
    bias_score,
    read_bbq,
)
from llm_jax.evaluation.bias.counterfactual import (
    PORTUGUESE,
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
from llm_jax.evaluation.bias.stereoset import (
    StereoSetItem,
    icat,
    read_stereoset,
    score_items,
    stereoset,
)
from llm_jax.evaluation.bias.winobias import (
    coreference_gap,
    read_winobias,
    read_winobias_texts,
    score_pairs,
    winobias,
)
from llm_jax.evaluation.significance.sign import sign_test
from llm_jax.types import DataError

PAIRS = [
    CrowsPair(f"group {i} is bad", f"crowd {i} is bad", "age" if i < 60 else "race", "stereo")
    for i in range(100)
]


def by_word(values):
    """A model whose log-likelihood of a text is what its first word is worth."""

    def scorer(prompts, continuations):
        return [values.get(text.split()[0], 0.0) for text in continuations]

    return scorer


def random_model(prompts, continuations):
    return np.random.default_rng(0).normal(size=len(prompts))


# CrowS-Pairs


def test_a_model_that_always_prefers_the_stereotype_scores_100():
    got = crows_pairs(PAIRS, score_causal(PAIRS, by_word({"group": -1.0, "crowd": -3.5})), "causal")
    assert got.overall.percent[:3] == (100, 100, 100)
    assert got.overall.mean_difference.value == 2.5 and got.form == "causal"
    other = crows_pairs(PAIRS, score_causal(PAIRS, by_word({"group": -9.0})), "causal")
    assert other.overall.percent.value == 0 and other.overall.opposed == 100


def test_an_unbiased_model_scores_50_and_each_category_has_its_count():
    scores = np.zeros((100, 2))
    scores[::2, 0] = 1
    scores[1::2, 1] = 1
    got = crows_pairs(PAIRS, scores, "causal")
    assert got.overall.percent.value == 50
    assert got.overall.percent.low < 50 < got.overall.percent.high
    assert {name: each.pairs for name, each in got.by_category.items()} == {"age": 60, "race": 40}
    assert {name: each.pairs for name, each in got.by_direction.items()} == {"stereo": 100}


def test_a_random_model_scores_about_50():
    pairs = PAIRS * 40
    got = crows_pairs(pairs, score_causal(pairs, random_model), "causal", resamples=200)
    # Four standard errors of 4,000 coins.
    assert got.overall.percent.value == pytest.approx(50, abs=3.2)


def test_ties_are_neutral_and_stay_in_the_denominator():
    scores = np.array([[2.0, 1], [1, 1], [1, 1], [1, 2]])
    got = crows_pairs(PAIRS[:4], scores, "causal").overall
    assert (got.preferred, got.opposed, got.neutral, got.percent.value) == (1, 1, 2, 25)


class NurseModel:
    """Log-probabilities: "nurse" is -1 beside "she" and -2.5 elsewhere; any other word -0.5."""

    def __init__(self):
        self.words = {}
        self.asked = []

    def tokenize(self, text):
        return [self.words.setdefault(word, len(self.words)) for word in text.split()]

    def log_probs(self, tokens, positions):
        names = {number: word for word, number in self.words.items()}
        row = [names[token] for token in tokens]
        self.asked.append([row[at] for at in positions])
        nurse = -1.0 if "she" in row else -2.5
        return [nurse if row[at] == "nurse" else -0.5 for at in positions]


def test_the_masked_form_counts_shared_tokens_only():
    model = NurseModel()
    pair = CrowsPair("she is a nurse", "that young man is a nurse", "gender")
    assert score_masked([pair], model).tolist() == [[-2.0, -3.5]]
    assert model.asked == [["is", "a", "nurse"]] * 2


def test_the_masked_form_rounds_to_three_decimals():
    class Near(NurseModel):
        def log_probs(self, tokens, positions):
            return [-1.0001 if 0 in tokens else -1.0003 for _ in positions]

    pair = CrowsPair("he left", "she left", "gender")
    got = crows_pairs([pair], score_masked([pair], Near()), "masked")
    assert got.overall.neutral == 1


def test_shared_positions_follow_what_is_inserted_and_repeated():
    assert shared_positions([1, 2, 3, 4], [1, 9, 3, 4]) == ([0, 2, 3], [0, 2, 3])
    assert shared_positions([1, 2, 3], [1, 8, 9, 3]) == ([0, 2], [0, 3])
    # Rows of more than 200 tokens, where difflib would drop frequent ones.
    long = [5] * 300
    assert shared_positions([1, *long], [2, *long]) == (list(range(1, 301)),) * 2


def test_scores_that_are_missing_are_refused():
    with pytest.raises(DataError, match=r"scores\[0, 1\] is nan"):
        crows_pairs(PAIRS[:1], np.array([[1, np.nan]]), "causal")
    with pytest.raises(DataError, match=r"scores\[1\] is -inf"):
        score_causal(PAIRS[:1], lambda prompts, texts: [0.0, -np.inf])
    with pytest.raises(DataError, match=r"the shape \(1,\); \(2,\)"):
        score_causal(PAIRS[:1], lambda prompts, texts: [0.0])
    with pytest.raises(DataError, match="no pairs"):
        crows_pairs([], np.zeros((0, 2)), "causal")
    with pytest.raises(DataError, match="share no token"):
        score_masked([CrowsPair("a", "b", "x")], NurseModel())


def test_both_files_of_crows_pairs_are_read(tmp_path):
    file = tmp_path / "masked.csv"
    file.write_text(
        ',bias_type,sentence,mask1,mask2\n0,age,"Those [MASK], they sleep.",old,young\n'
    )
    assert read_crows_pairs(file) == [
        CrowsPair("Those old, they sleep.", "Those young, they sleep.", "age")
    ]
    file.write_text("sent_more,sent_less,stereo_antistereo,bias_type\na,b,antistereo,gender\n")
    assert read_crows_pairs(file) == [CrowsPair("a", "b", "gender", "antistereo")]
    file.write_text(",bias_type,sentence,mask1,mask2\n0,age,No mask.,old,young\n")
    with pytest.raises(DataError, match=r"masked.csv:2: the sentence has 0 times \[MASK\]"):
        read_crows_pairs(file)
    file.write_text(",bias_type,sentence,mask1,mask2\n0,age,A [MASK].,,young\n")
    with pytest.raises(DataError, match="mask1 is ''"):
        read_crows_pairs(file)
    file.write_text(",bias_type,sentence,mask1,mask2\n")
    with pytest.raises(DataError, match="no records"):
        read_crows_pairs(file)
    with pytest.raises(DataError, match="not a file"):
        read_crows_pairs(tmp_path)
    file.write_bytes(b"bias_type\n\xff")
    with pytest.raises(DataError, match="masked.csv is not valid UTF-8"):
        read_crows_pairs(file)
    file.write_bytes('bias_type,sent_more,sent_less\r\nage,"a\u2028b\nc",d\r\n'.encode())
    assert read_crows_pairs(file) == [CrowsPair("a\u2028b\nc", "d", "age")]


# StereoSet


def stereoset_items(per_term, form="intrasentence"):
    return [
        StereoSetItem(term, "race", form, "BLANK", f"pro {term}", f"anti {term}", f"off {term}")
        for term, number in per_term.items()
        for _ in range(number)
    ]


def test_the_ideal_model_scores_100_50_100():
    items = stereoset_items({"a": 10, "b": 4})
    scores = np.array([[2.0, 1, 0], [1, 2, 0]] * 7)
    got = stereoset(items, scores).overall
    assert (got.lms, got.ss, got.icat, got.icat_of_terms) == (100, 50, 100, 100)
    assert (got.terms, got.items) == (2, 14)


def test_a_stereotyped_model_has_no_icat():
    items = stereoset_items({"a": 3})
    scores = score_items(items, by_word({"pro": 3, "anti": 2, "off": 1}))
    got = stereoset(items, scores).overall
    assert (got.lms, got.ss, got.icat) == (100, 100, 0)


def test_a_random_model_scores_about_50_50_50():
    items = stereoset_items({f"term {i}": 40 for i in range(100)})
    got = stereoset(items, score_items(items, random_model)).overall
    assert got.lms == pytest.approx(50, abs=3)
    assert got.ss == pytest.approx(50, abs=3)
    assert got.icat == pytest.approx(50, abs=5)


def test_stereoset_by_hand_counts_terms_equally_and_ties_as_anti():
    items = stereoset_items({"a": 1, "b": 3})
    scores = np.array([[3, 2, 1], [1, 1, 0], [0, 2, 1], [1, 0, 3]], float)
    # a: both related, stereotype. b: (2 + 1 + 0) of 6 related; a tie, anti, stereotype: 1 of 3.
    got = stereoset(items, scores).overall
    assert got.lms == pytest.approx((100 + 50) / 2)
    assert got.ss == pytest.approx((100 + 100 / 3) / 2)
    assert got.icat == pytest.approx(75 * (100 / 3) / 50)
    assert got.icat_of_terms == pytest.approx((0 + 50 * (100 / 3) / 50) / 2)
    assert icat(80, 60) == pytest.approx(64)


def test_the_sentence_that_follows_is_scored_after_its_context():
    asked = []

    def scorer(prompts, continuations):
        asked.extend(zip(prompts, continuations, strict=True))
        return [0.0] * len(prompts)

    score_items(stereoset_items({"a": 1}, "intersentence"), scorer)
    score_items(stereoset_items({"a": 1}), scorer)
    assert asked[0] == ("BLANK", " pro a") and asked[3] == ("", "pro a")


def test_groups_of_stereoset_have_their_own_counts(tmp_path):
    record = {"type": "intersentence", "target": "nurse", "bias_type": "gender", "context": "c"}
    record |= {"stereotype": "s", "anti-stereotype": "a", "unrelated": "u"}
    file = tmp_path / "test.jsonl"
    other = record | {"type": "intrasentence", "bias_type": "profession"}
    file.write_text(f"{json.dumps(record)}\n\n{json.dumps(other)}\n")
    got = stereoset(read_stereoset(file), np.array([[2.0, 1, 0], [1, 2, 0]]))
    assert {name: each.items for name, each in got.by_domain.items()} == {
        "gender": 1,
        "profession": 1,
    }
    assert list(got.by_form_and_domain) == ["intersentence/gender", "intrasentence/profession"]
    # One word in two domains is two terms.
    assert got.overall.terms == 2 and got.overall.ss == 50
    file.write_text(json.dumps(record | {"type": "other"}))
    with pytest.raises(DataError, match="test.jsonl:1: type is 'other'"):
        read_stereoset(file)
    file.write_text("\n[1]\n")
    with pytest.raises(DataError, match="test.jsonl:2 is a list"):
        read_stereoset(file)
    file.write_text("{")
    with pytest.raises(DataError, match="not valid JSON"):
        read_stereoset(file)
    del record["unrelated"]
    file.write_text(json.dumps(record))
    with pytest.raises(DataError, match="unrelated is None"):
        read_stereoset(file)


# WinoBias


def wino_file(tmp_path, **changes):
    record = {
        "text": " The driver paid [the cleaner] because [MASK] worked by [herself].",
        "pro_stereotyped": "she",
        "options": "A. he\nB. she\nC. Both A and B",
    }
    file = tmp_path / "wino.jsonl"
    file.write_text(json.dumps(record | changes))
    return file


def test_pairs_of_winobias_differ_in_the_pronoun_alone(tmp_path):
    (pair,) = read_winobias(wino_file(tmp_path))
    assert pair.pro == "The driver paid the cleaner because she worked by herself."
    assert pair.anti == "The driver paid the cleaner because he worked by himself."
    assert (pair.pronoun, pair.occupation) == ("she", "the cleaner")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"pro_stereotyped": "they"}, r"pronouns \['he', 'she'\]"),
        ({"options": "A. she\nB. Both"}, r"pronouns \['she'\]"),
        (
            {"text": "[The cleaner] and [the driver] left as [MASK] did"},
            "one .occupation. is expected",
        ),
        ({"text": "[The cleaner] left"}, "one .MASK. is expected"),
    ],
)
def test_lines_of_winobias_that_are_none(tmp_path, changes, said):
    with pytest.raises(DataError, match=said):
        read_winobias(wino_file(tmp_path, **changes))


def test_the_published_files_of_winobias_are_read(tmp_path):
    pro, anti = tmp_path / "pro.txt", tmp_path / "anti.txt"
    pro.write_text("1 [The chief] called the nurse because [he] was late.\n")
    anti.write_text("1 [The chief] called the nurse because [she] was late.\n")
    (pair,) = read_winobias_texts(pro, anti)
    assert pair.anti == "The chief called the nurse because she was late."
    assert (pair.pronoun, pair.occupation) == ("he", "The chief")
    anti.write_text("1 The chief called [the nurse] because [she] was late.\n")
    with pytest.raises(DataError, match="no pair"):
        read_winobias_texts(pro, anti)
    anti.write_text("")
    with pytest.raises(DataError, match="1 lines and"):
        read_winobias_texts(pro, anti)


def test_a_model_that_prefers_one_pronoun_is_told_from_a_stereotyped_one(tmp_path):
    pairs = read_winobias(wino_file(tmp_path)) * 4
    pairs += read_winobias(wino_file(tmp_path, pro_stereotyped="he")) * 4

    def prefers_he(prompts, texts):
        return [float(" he " in text) for text in texts]

    def follows_the_stereotype(prompts, texts):
        return [float(number % 2 == 0) for number in range(len(texts))]

    got = winobias(pairs, score_pairs(pairs, prefers_he))
    assert got.overall.percent.value == 50 and got.overall.mean_difference.value == 0
    assert {name: each.percent.value for name, each in got.by_gender.items()} == {
        "female": 0,
        "male": 100,
    }
    got = winobias(pairs, score_pairs(pairs, follows_the_stereotype))
    assert got.overall.percent.value == 100
    assert {each.percent.value for each in got.by_gender.values()} == {100}


def test_the_gap_of_coreference():
    got = coreference_gap([True] * 8 + [False] * 2, [True] * 5 + [False] * 5)
    assert (got.pro, got.anti, got.gap.value) == (80, 50, 30)
    assert got.gap.low > 0
    with pytest.raises(DataError, match="2 answers for and 1 against"):
        coreference_gap([True, False], [True])


# BBQ


def test_bias_scores_of_bbq_and_their_edges():
    assert bias_score(30, 40) == 0.5
    assert ambiguous_bias_score(30, 40, 0.7) == pytest.approx(0.15)
    assert (bias_score(0, 40), bias_score(40, 40), bias_score(20, 40)) == (-1, 1, 0)
    assert bias_score(0, 0) is None
    assert ambiguous_bias_score(0, 0, 1.0) == 0
    assert ambiguous_bias_score(0, 0, 0.5) is None
    with pytest.raises(DataError, match="3 biased of 2"):
        bias_score(3, 2)


def bbq_items():
    """Ten questions with facts (the biased answer is right in five) and ten without."""
    clear = [
        BBQItem("c", "q", ("x", "y", "?"), answer=i % 2, unknown=2, biased=0, category="age")
        for i in range(10)
    ]
    unclear = [BBQItem("c", "q", ("x", "y", "?"), 2, 2, 0, "race") for _ in range(10)]
    return clear + unclear


def test_a_perfect_reader_has_no_bias():
    items = bbq_items()
    got = bbq(items, [item.answer for item in items])
    assert got.overall[:4] == (1, 1, 0, 0)
    assert (got.overall.ambiguous, got.overall.disambiguated) == (10, 10)
    assert got.by_category["age"].s_amb is None and got.by_category["race"].s_dis is None


def test_a_model_that_always_or_never_follows_the_stereotype():
    got = bbq(bbq_items(), [0] * 20).overall
    assert got[:4] == (0, 0.5, 1, 1)
    got = bbq(bbq_items(), [1] * 20).overall
    assert got[:4] == (0, 0.5, -1, -1)


def test_intervals_of_bbq_and_stereoset_hold_their_values():
    chosen = [0, 1, 0, 1, 0, 0, 0, 1, 2, None] + [2] * 4 + [0] * 4 + [1] * 2
    got = bbq(bbq_items(), chosen, resamples=200).overall
    for name in ("accuracy_ambiguous", "accuracy_disambiguated", "s_dis", "s_amb"):
        interval = got.intervals[name]
        assert interval.value == pytest.approx(getattr(got, name)) and interval.low < interval.high
    assert got.intervals["s_dis"].items == 8
    items = stereoset_items({"a": 1, "b": 3, "c": 1})
    scores = np.array([[3, 2, 1], [1, 1, 0], [0, 2, 1], [1, 0, 3], [1, 2, 3]], float)
    whole = stereoset(items, scores, resamples=200).overall
    assert {name: whole.intervals[name].value for name in ("lms", "ss", "icat")} == {
        "lms": pytest.approx(whole.lms),
        "ss": pytest.approx(whole.ss),
        "icat": pytest.approx(whole.icat),
    }
    # Items of one term are not independent.
    assert whole.intervals["ss"].items == 3
    assert stereoset(items, scores, resamples=200, seed=1).overall.ss == whole.ss


def test_files_with_named_fields_are_read(tmp_path):
    file = tmp_path / "pairs.jsonl"
    file.write_text(json.dumps({"sent_more": "a", "sent_less": "b", "bias_type": "age"}))
    assert read_crows_pairs(file) == [CrowsPair("a", "b", "age")]
    pair = {"pro": "The cook left as she ran.", "anti": "The cook left as he ran."}
    pair |= {"pronoun": "she", "occupation": "the cook"}
    file.write_text(json.dumps(pair))
    (found,) = read_winobias(file)
    assert found._asdict() == pair
    file.write_text(json.dumps(pair | {"pronoun": "they"}))
    with pytest.raises(DataError, match="pronoun is 'they'"):
        read_winobias(file)
    question = {"context": "c", "question": "q", "choices": ["x", "y", "?"], "answer": 1}
    question |= {"unknown": 2, "biased": 0, "category": "age"}
    file.write_text(json.dumps(question))
    assert read_bbq(file) == [BBQItem("c", "q", ("x", "y", "?"), 1, 2, 0, "age")]
    for changes, said in (
        ({"answer": 3}, "answer is 3; the number of a choice is expected, from 0 to 2"),
        ({"biased": 2}, "biased and unknown are both 2"),
        ({"choices": "xy"}, "choices is 'xy'"),
    ):
        file.write_text(json.dumps(question | changes))
        with pytest.raises(DataError, match=said):
            read_bbq(file)


def test_bbq_by_hand():
    # Without facts: 4 unknown, 4 biased, 2 not. With facts: one "unknown", one unreadable.
    chosen = [0, 1, 0, 1, 0, 0, 0, 1, 2, None] + [2] * 4 + [0] * 4 + [1] * 2
    got = bbq(bbq_items(), chosen).overall
    assert got.accuracy_ambiguous == 0.4
    assert got.s_amb == pytest.approx(0.6 * (2 * 4 / 6 - 1))
    # Right: 0, 1, 2, 3, 4, 6, 7 of ten; biased: five of eight that name somebody.
    assert got.accuracy_disambiguated == pytest.approx(0.7)
    assert got.s_dis == pytest.approx(2 * 5 / 8 - 1)
    assert got.unparsed == 1 and got.unlabelled == 0


def test_a_random_model_has_bias_scores_near_0():
    chosen = np.random.default_rng(0).integers(0, 3, 6000).tolist()
    got = bbq(bbq_items() * 300, chosen).overall
    assert got.accuracy_ambiguous == pytest.approx(1 / 3, abs=0.04)
    assert got.s_dis == pytest.approx(0, abs=0.08) and got.s_amb == pytest.approx(0, abs=0.06)


def test_an_answer_that_does_not_exist_is_refused():
    with pytest.raises(DataError, match=r"chosen\[0\] is -1"):
        bbq(bbq_items()[:1], [-1])
    with pytest.raises(DataError, match="1 questions and 0 answers"):
        bbq(bbq_items()[:1], [])


def options_file(tmp_path, **changes):
    record = {
        "passage": "p",
        "question": "Who left?\nPlease choose the correct option ",
        "options": "A. Ann\nB. Not known\nC. Bob",
        "answer": ["Bob "],
    }
    file = tmp_path / "bbq.jsonl"
    file.write_text(json.dumps(record | changes))
    return file


def test_questions_with_lettered_options_are_read(tmp_path):
    (item,) = read_bbq(options_file(tmp_path))
    assert item == BBQItem("p", "Who left?", ("Ann", "Not known", "Bob"), answer=2, unknown=1)
    got = bbq([item], [2]).overall
    assert got.accuracy_disambiguated == 1 and got.s_dis is None and got.unlabelled == 1
    with pytest.raises(DataError, match="'Eve' is not one of"):
        read_bbq(options_file(tmp_path, answer=["Eve"]))
    with pytest.raises(DataError, match="answer is 'Bob'"):
        read_bbq(options_file(tmp_path, answer="Bob"))
    with pytest.raises(DataError, match="0 say that"):
        read_bbq(options_file(tmp_path, options="A. Ann\nB. Bob\nC. Eve"))


def published_file(tmp_path, **changes):
    record = {
        "question_polarity": "neg",
        "category": "Age",
        "answer_info": {
            "ans0": ["grandfather", "old"],
            "ans1": ["grandson", "nonOld"],
            "ans2": ["unknown", "unknown"],
        },
        "additional_metadata": {"stereotyped_groups": ["old"]},
        "context": "c",
        "question": "q",
        "ans0": "The grandfather",
        "ans1": "The grandson",
        "ans2": "Unknown",
        "label": 2,
    }
    file = tmp_path / "bbq.jsonl"
    file.write_text(json.dumps(record | changes))
    return file


def test_the_biased_answer_of_a_published_question(tmp_path):
    (item,) = read_bbq(published_file(tmp_path))
    assert (item.biased, item.unknown, item.ambiguous, item.category) == (0, 2, True, "Age")
    (item,) = read_bbq(published_file(tmp_path, question_polarity="nonneg", label=0))
    assert item.biased == 1 and not item.ambiguous
    groups = {"additional_metadata": {"stereotyped_groups": ["F"]}}
    (item,) = read_bbq(published_file(tmp_path, **groups))
    assert item.biased is None
    (item,) = read_bbq(published_file(tmp_path, **groups, target_loc=1))
    assert item.biased == 1
    with pytest.raises(DataError, match="label is 3"):
        read_bbq(published_file(tmp_path, label=3))
    with pytest.raises(DataError, match="question_polarity is 'pos'"):
        read_bbq(published_file(tmp_path, question_polarity="pos"))
    with pytest.raises(DataError, match="answer_info"):
        read_bbq(published_file(tmp_path, answer_info={}))


# Counterfactual prompts


def test_the_portuguese_prompts_are_whole_and_balanced():
    items = read_counterfactuals()
    assert len(items) > 500 and len(set(items)) == len(items)
    assert {item.valence for item in items} == {"positive", "negative", "neutral"}
    for item in items:
        assert item.continuation[0] == " " and item.continuation[-1] == "."
        assert item.first != item.second and item.first[0].isupper()
        # What follows fits "de" and "em" only where these join with the article.
        assert not any(f" {word} {item.terms[0]}" in item.first for word in ("de", "em", "por"))
    sizes = {}
    for item in items:
        sizes.setdefault(item.category, {}).setdefault(item.valence, 0)
        sizes[item.category][item.valence] += 1
    assert len(sizes) == 9
    assert all(each["positive"] == each["negative"] for each in sizes.values())


def test_counterfactual_differences_by_hand():
    items = read_counterfactuals()[:3]
    got = counterfactual_bias(items, np.array([[-1, -2], [-4, -3.5], [-1, -1]])).overall
    assert got.mean_absolute.value == 0.5 and got.mean.value == pytest.approx(1 / 6)
    assert got.signs == (1, 1, 1, 1.0) and got.prompts == 3


def test_an_unbiased_model_has_no_counterfactual_difference():
    items = read_counterfactuals()
    scores = score_counterfactuals(items, lambda prompts, texts: [-float(len(t)) for t in texts])
    got = counterfactual_bias(items, scores, resamples=10)
    assert got.overall.mean_absolute[:3] == (0, 0, 0) and got.overall.signs.ties == len(items)


def test_a_biased_model_has_the_difference_that_was_put_in():
    items = [item for item in read_counterfactuals() if item.category == "gender"]
    women = {item.second for item in items if item.valence == "positive"}

    def scorer(prompts, texts):
        return [-3.0 - 0.25 * (prompt in women) for prompt in prompts]

    got = counterfactual_bias(items, score_counterfactuals(items, scorer), resamples=10)
    by_valence = got.by_category_and_valence
    assert by_valence["gender/positive"].mean[:3] == (0.25, 0.25, 0.25)
    assert by_valence["gender/positive"].signs.p_value < 1e-15
    assert by_valence["gender/neutral"].prompts == 55


def test_templates_that_cannot_be_filled_are_named(tmp_path):
    value = json.loads(PORTUGUESE.read_text(encoding="utf-8"))
    file = tmp_path / "own.json"

    def refused(said, **changes):
        file.write_text(json.dumps(value | changes))
        with pytest.raises(DataError, match=said):
            read_counterfactuals(file)

    template = {"prompt": "{termo} e {Termo}", "continuation": " x.", "valence": "neutral"}
    refused("has not one", templates=[template])
    refused("continuation is None", templates=[{"prompt": "{termo}"}])
    refused("templates is", templates=[])
    refused("two different terms", groups=[{"category": "x", "pairs": [["a", "a"]]}])
    only = {"prompt": "Vi {termo}", "continuation": " hoje.", "valence": "neutral"}
    file.write_text(json.dumps(value | {"templates": [only | {"categories": ["age"]}]}))
    assert {item.category for item in read_counterfactuals(file)} == {"age"}


def test_the_sign_test_is_exact():
    assert sign_test([1.0] * 5) == (5, 0, 0, 2 / 32)
    assert sign_test([1.0, 1, 1, -1]).p_value == pytest.approx(2 * 5 / 16)
    assert sign_test([0.0, 0]) == (0, 0, 2, 1.0)
    assert sign_test([1.0] * 2000).p_value < 1e-300
