"""Cleaning is idempotent and does what its options say; dedup and split are functions of
the text.
"""

from __future__ import annotations

import re
import sys
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_jax.data.corpus.clean import CleanOptions, clean
from llm_jax.data.corpus.dedup import (
    Deduplicator,
    assign_splits,
    document_key,
    split_of,
    with_key,
)
from llm_jax.data.corpus.document import Document
from llm_jax.types import DataError

OPTIONS = st.builds(
    CleanOptions,
    normalization=st.sampled_from(["nfc", "nfkc", "none"]),
    strip_control=st.booleans(),
    whitespace=st.booleans(),
    lower_case=st.booleans(),
    remove_punctuation=st.booleans(),
)
# Characters that interact: line ends, blanks, combining marks, case oddities, controls, punctuation
# that normalisation makes or hides.
TRICKY = st.text(
    alphabet=(
        "aA \t\n\r\x00\x0b\x0c\x1c\x1f\x85\u2028\u00a0\u0e01\ufffa\u00ad\u200b\u200d\ufeff"
        "e\u0301\u0130\u1e9e\u2126.\u2026\u037e\ufb01"
    ),
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
        patch.setattr("llm_jax.data.corpus.clean._SUSPECT", re.compile(""))
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
        ("page one\fPage two\vcolumn", {}, "page one\nPage two\ncolumn"),
        ("é one\fPage two\vcolumn", {}, "é one\nPage two\ncolumn"),
        ("page one\fPage two\vcolumn", {"strip_control": False}, "page one\nPage two\ncolumn"),
        ("page one\fPage\r\ntwo\rx", {"whitespace": False}, "page one\nPage\ntwo\nx"),
        ("page\f", {"whitespace": False, "strip_control": False}, "page\f"),
        ("end.\n\fNext", {}, "end.\n\nNext"),
        ("a\x1cb\x1dc\x1ed\x1fe", {}, "a\nb\nc\nd e"),
        ("a\x85b\u2028c\u2029d", {}, "a\nb\nc\nd"),
        ("a\x85b\u2028c\u2029d", {"whitespace": False}, "a\nb\nc\nd"),
        # Controls that separate nothing stand within words: glyphs that a PDF reader does not know.
        ("e\x02cient é\x00\x7f\x9bl\u00ad\u2060\ufeffo", {}, "ecient élo"),
        ("\ufff9漢字\ufffaかんじ\ufffb次", {}, "漢字 かんじ 次"),
        # A zero-width space ends a word in Thai and Khmer; in an address it only lets a line end.
        ("ภาษา\u200bไทย ខ្មែរ\u200b\u200bអក្សរ", {}, "ภาษา\u200bไทย ខ្មែរ\u200bអក្សរ"),
        ("/usr/\u200bshare/\u200bdoc", {}, "/usr/share/doc"),
        ("x\x1f\ny", {"strip_control": False}, "x\ny"),
    ],
)
def test_literal(text, options, expected):
    assert clean(text, CleanOptions(**options)) == expected


def test_the_ascii_path_agrees_with_the_general_one():
    text = "A  b \n\n\n\n\n\tc\x01\r\nd  "
    assert clean(text + "\né") == clean(text) + "\né"


# White space by Unicode and Python: blanks, line ends, and the controls that separate.
SEPARATORS = "".join(c for c in map(chr, range(sys.maxunicode)) if c.isspace())
WITHIN = "\x00\x07\x1b\x7f\x9b\u00ad\u200b\u200d\u2060\ufeff\ufff9.-"
BETWEEN = st.tuples(
    st.text(SEPARATORS + WITHIN, max_size=3),
    st.sampled_from(SEPARATORS),
    st.text(SEPARATORS + WITHIN, max_size=3),
).map("".join)


@given(
    st.lists(st.tuples(st.sampled_from(["ab", "é", "日本", "ก", "x1"]), BETWEEN), max_size=8),
    OPTIONS,
)
@settings(max_examples=600, deadline=None)
def test_no_words_are_joined(pieces, options):
    cleaned = clean("".join(word + between for word, between in pieces), options)
    found = [re.sub(f"[{re.escape(WITHIN)}]", "", word) for word in cleaned.split()]
    assert [word for word in found if word] == [word for word, _ in pieces]


def test_the_separators_are_those_of_unicode():
    by_direction = {
        c for c in map(chr, range(0x100)) if unicodedata.bidirectional(c) in ("B", "S", "WS")
    }
    assert by_direction == {c for c in SEPARATORS if c < "\u0100"} - {"\xa0"}


@given(st.text("aA \t\n\r\x00\x0b\x0c\x1c\x1f.", max_size=30), OPTIONS)
@settings(max_examples=400, deadline=None)
def test_ascii_is_cleaned_as_other_text_is(text, options):
    assert clean("é" + text, options) == "é" + clean("x" + text, options)[1:]


def test_unknown_normalization_is_named():
    with pytest.raises(DataError, match="normalization='nfd'; it must be 'nfc', 'nfkc' or 'none'"):
        CleanOptions(normalization="nfd")


def key(*texts):
    return document_key(Document(texts, "f"))


def test_deduplicator_keeps_the_first():
    seen = Deduplicator()
    assert [seen.is_new(key(t)) for t in ("a", "b", "a", "a ", "b")] == [
        True,
        True,
        False,
        True,
        False,
    ]


def split(texts, fraction):
    return {
        assigned.document.text: assigned.split
        for assigned in assign_splits((with_key(Document((t,), "f")) for t in texts), fraction)
    }


@given(
    st.lists(st.text(max_size=5), unique=True, max_size=12),
    st.sampled_from([0.0, 1e-9, 0.05, 0.5, 0.999999]),
)
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
    assert [t for t in texts if found[t] == "validation"] == [min(texts, key=lambda t: key(t))]


def test_split_is_a_function_of_the_hash_at_the_right_rate():
    texts = [f"document {i}" for i in range(20_000)]
    held = {t for t in texts if split_of(key(t), 0.1) == "validation"}
    assert abs(len(held) - 2000) < 4 * (20_000 * 0.1 * 0.9) ** 0.5
    assert held <= {t for t in texts if split_of(key(t), 0.2) == "validation"}
    with pytest.raises(DataError, match="validation_fraction=1"):
        split_of(key("a"), 1)


def test_a_long_run_of_blanks_is_read_once():
    # Retried from each of its blanks it would take hours.
    blanks = " " * 1_000_000
    assert clean(f"a \n{blanks}x{blanks}") == f"a\n{blanks}x"
    assert clean(f"\u00e9 \n{blanks}x{blanks}") == f"\u00e9\n{blanks}x"
