"""Cleaning is idempotent and does what its options say; dedup and split are functions of the text."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_jax.data.clean import CleanOptions, clean
from llm_jax.data.dedup import Deduplicator, assign_splits, digest, split_of
from llm_jax.types import DataError

OPTIONS = st.builds(
    CleanOptions,
    normalization=st.sampled_from(["nfc", "nfkc", "none"]),
    strip_control=st.booleans(),
    whitespace=st.booleans(),
    lower_case=st.booleans(),
    remove_punctuation=st.booleans(),
)
# Characters that interact: line ends, blanks, combining marks, case oddities, controls, punctuation that normalisation
# makes or hides.
TRICKY = st.text(
    alphabet="aA \t\n\r\x00\x0b\x0c\x1c\x85\u2028\u00a0\u00ad\u200b\u200d\ufeffe\u0301\u0130\u1e9e"
    "\u2126.\u2026\u037e\ufb01",
    max_size=30,
)


@given(st.one_of(TRICKY, st.text(max_size=60)), OPTIONS)
@settings(max_examples=600, deadline=None)
def test_idempotent(text, options):
    once = clean(text, options)
    assert clean(once, options) == once


@given(st.one_of(TRICKY, st.text(max_size=60)), OPTIONS)
@settings(max_examples=400, deadline=None)
def test_the_short_cut_for_plain_text_changes_nothing(text, options):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("llm_jax.data.clean._SUSPECT", re.compile(""))
        thorough = clean("é" + text, options)
    assert clean("é" + text, options) == thorough


@pytest.mark.parametrize(
    "text, options, expected",
    [
        ("a\r\nb\rc\u2028d", {}, "a\nb\nc\nd"),
        ("\ufeffe\u0301 \x07\x00x\u200by", {}, "é xy"),
        ("if x:  \n\t  y\t\n", {}, "if x:\n\t  y"),
        ("    first line keeps its indentation", {}, "    first line keeps its indentation"),
        ("a\n\nb\n\n\nc\n\n\n\nd\n \n\t\n\n\n\ne", {}, "a\n\nb\n\n\nc\n\nd\n\ne"),
        ("क\u094d\u200dष 👩\u200d👩", {}, "क\u094d\u200dष 👩\u200d👩"),
        ("\ufb01 ² Ａ", {}, "\ufb01 ² Ａ"),
        ("\ufb01 ² Ａ", {"normalization": "nfkc"}, "fi 2 A"),
        ("e\u0301", {"normalization": "none"}, "e\u0301"),
        ("Ab Éc", {"lower_case": True}, "ab éc"),
        ("Hi, «you»! a_b", {"remove_punctuation": True}, "Hi you ab"),
        ("a \r\n\x07", {"whitespace": False, "strip_control": False}, "a \r\n\x07"),
        (" \n\t\n", {}, ""),
    ],
)
def test_literal(text, options, expected):
    assert clean(text, CleanOptions(**options)) == expected


def test_the_ascii_path_agrees_with_the_general_one():
    text = "A  b \n\n\n\n\n\tc\x01\r\nd  "
    assert clean(text + "\né") == clean(text) + "\né"


def test_unknown_normalization_is_named():
    with pytest.raises(DataError, match="normalization='nfd'; it must be 'nfc', 'nfkc' or 'none'"):
        CleanOptions(normalization="nfd")


def test_deduplicator_keeps_the_first():
    seen = Deduplicator()
    assert [seen.is_new(digest((t,))) for t in ("a", "b", "a", "a ", "b")] == [True, True, False, True, False]


def split(texts, fraction):
    return {d.texts[0]: d.split for d in assign_splits((((t,), "f", digest((t,))) for t in texts), fraction)}


@given(st.lists(st.text(max_size=5), unique=True, max_size=12), st.sampled_from([0.0, 1e-9, 0.05, 0.5, 0.999999]))
@settings(deadline=None)
def test_no_document_is_lost_and_no_split_is_empty(texts, fraction):
    found = split(texts, fraction)
    assert set(found) == set(texts)
    if fraction == 0 or len(texts) == 1:
        assert set(found.values()) <= {"train"}
    elif len(texts) >= 2:
        assert set(found.values()) == {"train", "validation"}


def test_the_smallest_hash_is_held_out_of_a_small_corpus():
    texts = [f"text {i}" for i in range(9)]
    found = split(texts, 1e-9)
    assert [t for t in texts if found[t] == "validation"] == [min(texts, key=lambda t: digest((t,)))]


def test_split_is_a_function_of_the_hash_at_the_right_rate():
    texts = [f"document {i}" for i in range(20_000)]
    held = {t for t in texts if split_of(digest((t,)), 0.1) == "validation"}
    assert abs(len(held) - 2000) < 4 * (20_000 * 0.1 * 0.9) ** 0.5
    assert held <= {t for t in texts if split_of(digest((t,)), 0.2) == "validation"}
    with pytest.raises(DataError, match="validation_fraction=1"):
        split_of(digest(("a",)), 1)
