"""BLEU, chrF, TER, ROUGE, exact match, F1 of words and of labels, by hand."""

import importlib

import numpy as np
import pytest

from llm_jax.classic.scores import classification_scores
from llm_jax.evaluation.text_metrics import translation
from llm_jax.evaluation.text_metrics.answers import (
    answer_scores,
    normalize_squad,
    normalize_unicode,
)
from llm_jax.evaluation.text_metrics.rouge import rouge
from llm_jax.evaluation.text_metrics.words import unicode_words
from llm_jax.types import ConfigError, DataError

TEXT = ["the cat sat on the mat"]
REFERENCE = [["the cat is on the mat"]]


def bleu(**options):
    pytest.importorskip("sacrebleu", reason="needs the extra: pip install -e '.[metrics]'")
    return translation.bleu(**options)


def ter(**options):
    pytest.importorskip("sacrebleu", reason="needs the extra: pip install -e '.[metrics]'")
    return translation.ter(**options)


def chrf(**options):
    pytest.importorskip("sacrebleu", reason="needs the extra: pip install -e '.[metrics]'")
    return translation.chrf(**options)


def scored_rouge(*arguments, **options):
    pytest.importorskip("rouge_score", reason="needs the extra: pip install -e '.[metrics]'")
    return rouge(*arguments, **options)


def test_bleu_by_hand():
    got = bleu().corpus(TEXT, REFERENCE)
    assert got.score == pytest.approx((500 / 6 * 60 * 25 * 100 / 6) ** 0.25)
    assert got.score == pytest.approx(37.9918, abs=5e-5)
    assert got.details["precisions"] == pytest.approx([83.3333, 60, 25, 16.6667], abs=1e-4)
    assert got.signature.startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:")


def test_brevity_takes_the_closest_reference_and_the_shorter_of_two():
    # Four words; references of three and five words are equally close.
    got = bleu(tokenizer="none").corpus(["a b c d"], [["a b c", "a b c d e"]])
    assert got.details["ref_len"] == 3 and got.details["bp"] == 1.0
    assert got.score == pytest.approx(100)
    assert got.signature.startswith("nrefs:2|")


def test_corpus_bleu_is_not_the_mean_of_sentences():
    metric = bleu(tokenizer="none", smoothing="none", max_order=1)
    texts = ["a b c d", "x"]
    references = [["a b c d"], ["y"]]
    assert metric.corpus(texts, references).score == pytest.approx(80)
    assert metric.sentences(texts, references) == pytest.approx([100, 0])


@pytest.mark.parametrize(
    ("smoothing", "last"), [("exp", 100 / 6), ("floor", 10 / 3), ("add-k", 100 / 4)]
)
def test_smoothing_of_an_order_without_a_match(smoothing, last):
    counts = {"add-k": (500 / 6, 400 / 6, 200 / 5)}.get(smoothing, (500 / 6, 60, 25))
    got = bleu(smoothing=smoothing).corpus(TEXT, REFERENCE)
    assert got.score == pytest.approx(np.prod([*counts, last]) ** 0.25)


def test_effective_order_scores_a_short_text():
    assert bleu().sentences(["a b"], [["a b"]])[0] == 0
    assert bleu(effective_order=True).sentences(["a b"], [["a b"]])[0] == pytest.approx(100)


def test_chrf_by_hand_and_its_words():
    # Of "ab" beside "ac": one of two characters, none of one pair: precision 1/4 over two orders.
    assert chrf().corpus(["ab"], [["ac"]]).score == pytest.approx(25)
    plain = chrf().corpus(TEXT, REFERENCE)
    words = chrf(word_order=2).corpus(TEXT, REFERENCE)
    assert (plain.name, words.name) == ("chrF2", "chrF2++")
    assert words.score != plain.score and "|nw:2|" in words.signature


def test_ter_counts_edits_and_shifts_by_words_of_the_reference():
    assert ter().corpus(TEXT, REFERENCE).score == pytest.approx(100 / 6)
    moved = ter().corpus(["mat the cat is on the"], REFERENCE)
    assert moved.details["num_edits"] == 1
    assert ter().corpus(["a b c d e f"], [["x y z"]]).score == pytest.approx(200)


@pytest.mark.parametrize(
    ("texts", "references", "said"),
    [
        ([], [], "there are no texts"),
        (["a"], [["a"], ["b"]], "1 texts and 2 references"),
        (["a", "b"], [["a", "b"], ["a"]], r"references\[1\] has 1 references"),
        (["a", "b"], [["a"], []], r"references\[1\] is empty"),
        (["a"], [[" "]], r"references\[0\]\[0\] is ' '"),
        (["a"], ["a"], r"references\[0\] is one string"),
        (["a", None], [["a"], ["b"]], r"texts\[1\] is None"),
        ("a", [["a"]], "texts is one string"),
    ],
)
def test_references_that_are_missing_are_named(texts, references, said):
    with pytest.raises(DataError, match=said):
        bleu().corpus(texts, references)
    with pytest.raises(DataError, match=said):
        scored_rouge(texts, references)


def test_an_empty_text_scores_nothing():
    assert bleu().corpus([""], [["a b"]]).score == 0
    assert scored_rouge([""], [["a b"]]).scores["rouge1"].f.value == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"tokenizer": "words"}, "tokenizer is 'words'.*13a"),
        ({"smoothing": "laplace"}, "smoothing is 'laplace'.*add-k"),
        ({"smoothing_value": 0.2}, "smoothing_value is 0.2"),
        ({"max_order": 0}, "max_order is 0"),
    ],
)
def test_options_of_bleu_that_do_not_exist(options, said):
    with pytest.raises(ConfigError, match=said):
        bleu(**options)


def test_an_option_of_ter_that_would_do_nothing():
    with pytest.raises(ConfigError, match="normalized=True"):
        ter(asian=True)


@pytest.mark.parametrize(
    ("package", "call"),
    [
        ("sacrebleu", translation.bleu),
        ("sacrebleu", translation.ter),
        ("rouge-score", lambda: rouge(TEXT, REFERENCE)),
    ],
)
def test_a_missing_package_is_named_with_its_extra(monkeypatch, package, call):
    real = importlib.import_module

    def missing(name, *arguments):
        if name.startswith(package.replace("-", "_")):
            raise ImportError(name)
        return real(name, *arguments)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(ConfigError, match=rf"needs {package}.*llm_jax\[metrics\]"):
        call()


def test_rouge_by_hand():
    got = scored_rouge(TEXT, REFERENCE)
    values = {kind: score.f.value for kind, score in got.scores.items()}
    assert values == pytest.approx(
        {"rouge1": 5 / 6, "rouge2": 3 / 5, "rougeL": 5 / 6, "rougeLsum": 5 / 6}
    )
    assert got.signature.startswith(
        "nrefs:1|tok:rouge_score|stem:no|multi:max-f|lsum:newline|bs:1000|seed:12345|version:"
    )


def test_rouge_takes_the_better_reference_by_kind():
    # Of words the second is better, of pairs the first.
    references = [["a b x y", "d c b a"]]
    got = scored_rouge(["a b c d"], references, kinds=("rouge1", "rouge2")).scores
    assert got["rouge1"].f.value == pytest.approx(1)
    assert got["rouge2"].f.value == pytest.approx(1 / 3)


def test_precision_and_recall_divide_by_their_own_words():
    got = scored_rouge(["a b"], [["a b c d e f g h"]], kinds=["rouge1"]).scores["rouge1"]
    assert (got.precision, got.recall) == (1, 0.25)
    assert got.f.value == pytest.approx(0.4)


def test_sentences_of_rouge_lsum_are_lines():
    # As one text the longest common subsequence is one of the two lines.
    got = scored_rouge(["c d\na b"], [["a b\nc d"]]).scores
    assert got["rougeL"].f.value == pytest.approx(0.5)
    assert got["rougeLsum"].f.value == pytest.approx(1)


def test_rouge_of_other_scripts_needs_unicode_words():
    chinese = ["我喜欢读书"], [["我爱读书"]]
    assert scored_rouge(*chinese).scores["rouge1"].f.value == 0
    got = scored_rouge(*chinese, words="unicode")
    # 我, 读, 书 of five and of four characters.
    assert got.scores["rouge1"].f.value == pytest.approx(2 * 3 / 9)
    assert "|tok:unicode|" in got.signature
    portuguese = ["É ação."], [["é, ação"]]
    assert scored_rouge(*portuguese, words="unicode").scores["rouge1"].f.value == 1
    # rouge_score reads "a" and "o" of both, and would match "aço" too.
    other = ["ação"], [["aéo"]]
    assert scored_rouge(*other).scores["rouge1"].f.value == 1
    assert scored_rouge(*other, words="unicode").scores["rouge1"].f.value == 0


def test_unicode_words_equal_those_of_rouge_score_in_english():
    text = "It's 10 o'clock: the well-known U.S. state_of_mind, isn't it?"
    pytest.importorskip("rouge_score")
    from rouge_score.tokenize import tokenize

    assert unicode_words(text) == tokenize(text, None)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("O pão-de-ló é d'água", ["o", "pão", "de", "ló", "é", "d", "água"]),
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("我爱PyTorch和JAX", ["我", "爱", "pytorch", "和", "jax"]),
        ("ひらがな", ["ひ", "ら", "が", "な"]),
        ("ﬁm Straße", ["fim", "strasse"]),
        ("e\u0301 é", ["é", "é"]),
        ("… — !", []),
        ("", []),
    ],
)
def test_words_of_any_language(text, words):
    assert unicode_words(text) == words


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"words": "english"}, "words is 'english'"),
        ({"kinds": ["rouge0"]}, "rouge0"),
        ({"kinds": ["rougeW"]}, "rougeW"),
        ({"kinds": []}, "kinds is empty"),
        ({"words": "unicode", "stemmer": True}, "words='rouge_score'"),
        ({"resamples": 0}, "resamples is 0"),
    ],
)
def test_options_of_rouge_that_do_not_exist(options, said):
    with pytest.raises(ConfigError, match=said):
        scored_rouge(TEXT, REFERENCE, **options)


def test_the_bootstrap_of_rouge_is_seeded():
    texts = ["a b", "a", "c d e", "x"]
    references = [["a c"], ["a"], ["c d f"], ["y"]]
    first, again, other = (
        scored_rouge(texts, references, seed=seed).scores["rouge1"].f for seed in (1, 1, 2)
    )
    assert first == again and first.signature != other.signature
    assert first.low < first.value < first.high


def test_the_normalizer_of_squad():
    assert normalize_squad("The  Eiffel-Tower, a tower.") == "eiffeltower tower"
    assert normalize_unicode("Os Lusíadas!", "pt") == "lusíadas"
    assert normalize_unicode("The “Beatles”", "en") == "beatles"
    assert normalize_squad("The “Beatles”") == "“beatles”"


def test_exact_match_and_f1_by_hand():
    got = answer_scores(
        ["the cat sat", "Paris!", "", "", "no"],
        [["a cat sat down"], ["London", "paris"], [""], ["x"], [""]],
    )
    # Of "cat sat" and "cat sat down" two words are shared of two and three.
    assert got.f1_each == pytest.approx([0.8, 1, 1, 0, 0])
    assert got.exact_each.tolist() == [0, 1, 1, 0, 0]
    assert (got.exact_match, got.f1) == (0.4, pytest.approx(0.56))
    assert got.signature == "norm:squad|articles:en|multi:max"


def test_answers_in_other_languages():
    options = {"normalizer": "unicode", "articles": "pt"}
    assert answer_scores(["a Índia"], [["índia"]], **options).exact_match == 1
    # Two characters of two and three.
    got = answer_scores(["北京"], [["北京市"]], normalizer="unicode", articles="none")
    assert got.f1 == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "said"),
    [
        (([], []), {}, DataError, "there are no answers"),
        ((["a"], []), {}, DataError, "1 answers and 0 references"),
        ((["a"], [[]]), {}, DataError, r"references\[0\] is empty"),
        ((["a"], ["a"]), {}, DataError, "one string"),
        (([None], [["a"]]), {}, DataError, r"answers\[0\] is None"),
        ((["a"], [["a"]]), {"normalizer": "x"}, ConfigError, "squad, unicode"),
        ((["a"], [["a"]]), {"articles": "pt"}, ConfigError, "normalizer='unicode'"),
        ((["a"], [["a"]]), {"articles": "fr"}, ConfigError, "en, pt, none"),
    ],
)
def test_answers_that_cannot_be_scored(arguments, options, error, said):
    with pytest.raises(error, match=said):
        answer_scores(*arguments, **options)


def test_f1_of_classes_by_hand():
    got = classification_scores(list("aaabbc"), list("aabbca"))
    assert got.accuracy == pytest.approx(3 / 6)
    # a: 2 of 3 and 3; b: 1 of 2 and 2; c: 0 of 1 and 1.
    assert got.by_class["a"].f1 == pytest.approx(2 / 3)
    assert got.by_class["b"].f1 == 0.5 and got.by_class["c"].f1 == 0
    assert got.macro_f1 == pytest.approx((2 / 3 + 1 / 2) / 3)
    assert got.micro_f1 == pytest.approx(0.5)
    assert got.weighted_f1 == pytest.approx((3 * 2 / 3 + 2 * 1 / 2) / 6)


def test_classes_that_count_may_be_chosen():
    labels, predictions = list("aaoo"), list("aoao")
    got = classification_scores(labels, predictions, classes=["a", "z"])
    assert got.accuracy == 0.5 and got.micro_f1 == 0.5
    assert got.by_class["z"].f1 == 0 and got.macro_f1 == 0.25
    assert classification_scores(["a"], ["a"]).macro_f1 == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (([], []), "no labels"),
        ((["a"], []), "1 labels and 0 predictions"),
        ((["a"], ["a"], []), "classes"),
        ((["a"], ["a"], ["a", "a"]), "each class once"),
    ],
)
def test_labels_that_cannot_be_scored(arguments, said):
    with pytest.raises(DataError, match=said):
        classification_scores(*arguments)
