"""Words of one group in the place of another's."""

from __future__ import annotations

import json

import pytest

from llm_jax.data.corpus.swap_words import (
    LANGUAGES,
    WordPairs,
    augmented,
    read_word_pairs,
    swap_words,
)
from llm_jax.types import DataError


@pytest.mark.parametrize(
    "language, text, other",
    [
        ("en", "He met the queen.", "She met the king."),
        ("en", "HE said: “his men, HER boys”", "SHE said: “her women, HIS girls”"),
        ("en", "I saw her. The book is hers.", "I saw him. The book is his."),
        ("en", "Her book is his.", "His book is hers."),
        ("en", "manual, mankind, she-wolf", "manual, mankind, he-wolf"),
        ("en", "Nobody is here.", "Nobody is here."),
        ("pt", "O médico viu a enfermeira.", "A médica viu o enfermeiro."),
        ("pt", "Os meus dois irmãos e a casa", "As minhas duas irmãs e a casa"),
        ("pt", "A casa do tio, à MÃE", "A casa da tia, ao PAI"),
        ("pt", "o, homem", "o, mulher"),
    ],
)
def test_words_are_swapped_with_their_case_and_determiners(language, text, other):
    pairs = read_word_pairs(language)
    assert swap_words(text, pairs) == other
    assert swap_words(other, pairs) == text


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_pair_of_our_lists_goes_both_ways(language):
    pairs = read_word_pairs(language)
    one_way = {"him", "her", "his", "hers"}
    assert len(pairs.words) > 50
    for word, other in pairs.words.items():
        assert word in one_way or pairs.words[other] == word
        assert swap_words(f"x {word} y", WordPairs({word: other})) == f"x {other} y"
    assert all(pairs.determiners[other] == word for word, other in pairs.determiners.items())


def test_augmented_text_has_each_changed_text_once_more():
    pairs = read_word_pairs("en")
    texts = ["He runs.", "It rains.", "The wives sing."]
    assert list(augmented(texts, pairs)) == [
        "He runs.",
        "She runs.",
        "It rains.",
        "The wives sing.",
        "The husbands sing.",
    ]
    # Both groups have the same counts then.
    words = " ".join(augmented(texts, pairs)).lower().split()
    assert words.count("he") == words.count("she") and words.count("wives") == 1


@pytest.mark.parametrize(
    "value, said",
    [
        ({"pairs": [["he", "she"], ["he", "it"]]}, "pairs has 'he' twice"),
        ({"pairs": [["He", "she"]]}, "two words in lower case"),
        ({"pairs": [["a b", "c"]]}, "two words in lower case"),
        ({"pairs": [["he", "she"]], "one_way": {"Him": "her"}}, "one_way is"),
        ({"pairs": [["he", "she"]], "other": []}, "is no list of word pairs"),
        ({"pairs": []}, "is no list of word pairs"),
    ],
)
def test_lists_that_are_none(tmp_path, value, said):
    file = tmp_path / "pairs.json"
    file.write_text(json.dumps(value))
    with pytest.raises(DataError, match=said):
        read_word_pairs(file)
    file.write_text("{")
    with pytest.raises(DataError, match="not valid JSON"):
        read_word_pairs(file)
    with pytest.raises(DataError, match="give en or pt, or a file"):
        read_word_pairs("fr")
