"""What a word is: the rule, its options, and n-grams."""

from __future__ import annotations

import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_jax.classic.words import (
    SKLEARN_PATTERN,
    WordRule,
    checked_texts,
    sklearn_rule,
    unicode_words,
)
from llm_jax.types import ConfigError, DataError


def is_letter_or_digit(character: str) -> bool:
    return unicodedata.category(character)[0] in "LN"


def goes_on(character: str) -> bool:
    return unicodedata.category(character)[0] in "LNM" or character in "\u200c\u200d"


def words_by_the_rule(text: str) -> list[str]:
    """The rule, one character after the other."""
    found: list[str] = []
    inside = False
    for character in text:
        if inside and goes_on(character):
            found[-1] += character
        elif is_letter_or_digit(character):
            found.append(character)
            inside = True
        else:
            inside = False
    return found


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("essa casa é bonita", ["essa", "casa", "é", "bonita"]),
        ("O carro, é RÁPIDO!", ["o", "carro", "é", "rápido"]),
        ("d'água guarda-chuva don't", ["d", "água", "guarda", "chuva", "don", "t"]),
        ("snake_case 3.14 x²", ["snake", "case", "3", "14", "x²"]),
        # Decomposed letters become composed ones.
        ("e\u0301 cac\u0327a", ["é", "caça"]),
        # q̃ has no composed form: its mark stays in the word.
        ("q\u0303ue", ["q\u0303ue"]),
        ("नमस्ते दुनिया", ["नमस्ते", "दुनिया"]),
        ("می‌خواهم", ["می‌خواهم"]),
        ("日本語 ひらがな", ["日本語", "ひらがな"]),
        ("", []),
        (" \n\t…—", []),
        # A mark alone is no word.
        ("\u0301 a", ["a"]),
    ],
)
def test_words_written_out(text, words):
    assert WordRule().analyzer()(text) == words


def test_every_character_is_of_the_category_that_the_rule_says():
    characters = [chr(i) for i in range(sys.maxunicode + 1)]
    found = unicode_words(" ".join(characters))
    # Marks and joiners attach to nothing after a blank.
    assert found == [c for c in characters if is_letter_or_digit(c)]


@given(st.text(st.sampled_from("ab1é_\u0301\u200d .-'सिπ²\ud800"), max_size=12))
def test_text_with_and_without_marks_and_ascii_follow_one_rule(text):
    assert unicode_words(text) == words_by_the_rule(text)


@given(st.text(st.sampled_from("ab1_é. '\u0301\u200d"), max_size=12))
def test_the_pattern_of_sklearn_is_found_as_it_is_written(text):
    # A group that changes nothing makes it another pattern to who compares texts.
    as_written = WordRule(normalization="none", pattern=f"(?:{SKLEARN_PATTERN[4:]})")
    assert sklearn_rule().analyzer()(text) == as_written.analyzer()(text)


@pytest.mark.parametrize(
    ("rule", "text", "words"),
    [
        (WordRule(lowercase=False), "O carro", ["O", "carro"]),
        (WordRule(strip_accents=True), "É rápido", ["e", "rapido"]),
        (WordRule(normalization="nfkc"), "ﬁm", ["fim"]),
        (WordRule(normalization="none"), "e\u0301", ["e\u0301"]),
        (WordRule(stop_words=("é", "o")), "o carro é", ["carro"]),
        (WordRule(pattern=r"\S+"), "d'água, sim", ["d'água,", "sim"]),
        (WordRule(pattern=r"<(\w+)>"), "<a> b <c>", ["a", "c"]),
        (sklearn_rule(), "é o rápido a_b", ["rápido", "a_b"]),
    ],
)
def test_options(rule, text, words):
    assert rule.analyzer()(text) == words


def test_ngrams_are_runs_the_shortest_first():
    rule = WordRule(ngrams=(1, 3), stop_words=("é",))
    assert rule.analyzer()("essa casa é bonita") == [
        *("essa", "casa", "bonita"),
        *("essa casa", "casa bonita"),
        "essa casa bonita",
    ]
    assert WordRule(ngrams=(2, 2)).analyzer()("uma") == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"normalization": "nfd"}, "normalization is 'nfd'; it must be nfc, nfkc or none"),
        ({"ngrams": (2, 1)}, "ngrams is (2, 1)"),
        ({"ngrams": (0, 1)}, "ngrams is (0, 1)"),
        ({"ngrams": (1,)}, "ngrams is (1,)"),
        ({"ngrams": 2}, "ngrams is 2"),
        ({"ngrams": (1, 2.5)}, "ngrams is (1, 2.5)"),
        ({"pattern": "(a"}, "pattern '(a' is not a valid regular expression"),
        ({"pattern": "(a)(b)"}, "has 2 groups"),
        ({"pattern": "a*"}, "matches the empty text"),
        ({"stop_words": "the"}, "stop_words is the string 'the'"),
    ],
)
def test_bad_rules_are_named(settings, message):
    with pytest.raises(ConfigError) as error:
        WordRule(**settings)
    assert message in str(error.value)


def test_texts_that_are_none_are_named():
    with pytest.raises(DataError, match="texts is one string"):
        list(checked_texts("a text"))
    with pytest.raises(DataError, match="text 1 is of type bytes"):
        list(checked_texts(["a", b"b"]))
