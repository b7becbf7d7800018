"""Text normalisation: one pure, idempotent function."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from typing import Literal

from llm_jax.types import DataError

Normalization = Literal["nfc", "nfkc", "none"]

# Control characters but \n and \t; then U+FEFF (byte order mark), soft hyphen, zero-width space, word joiner and their
# kin. U+200C and U+200D (zero-width non-joiner and joiner) stay: Indic and Arabic scripts and emoji need them.
_ASCII_CONTROL = bytes(c for c in [*range(0x20), 0x7F] if c not in b"\n\t")
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u200b\u2060\ufeff\ufff9-\ufffb]")
# What a text that is not ASCII must hold for the slower steps to have anything to do.
_SUSPECT = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\xa0\u00ad\u1680\u2000-\u200b\u2028\u2029\u202f\u205f\u2060\u3000\ufeff\ufff9-\ufffb]"
)
_LINE_END = re.compile("\r\n?|\u2028|\u2029|\x85")
_TRAILING = re.compile(r"[^\S\n]+(?=\n|\Z)")
_BLANK_LINES = re.compile(r"\n{4,}")


@dataclass(frozen=True)
class CleanOptions:
    """What ``clean`` does.

    normalization: Unicode form; ``"nfc"`` joins accents to their letters, ``"nfkc"`` also folds ligatures, widths and
        superscripts (it changes code and formulas), ``"none"`` leaves characters as they are.
    strip_control: drop control characters (but tab and newline), byte order marks and zero-width characters without
        meaning.
    whitespace: line ends become ``\\n``, blanks at line ends go, more than two blank lines in a row become one;
        indentation stays.
    lower_case: lower-case everything.
    remove_punctuation: drop all characters of Unicode's punctuation categories.
    """

    normalization: Normalization = "nfc"
    strip_control: bool = True
    whitespace: bool = True
    lower_case: bool = False
    remove_punctuation: bool = False

    def __post_init__(self):
        if self.normalization not in ("nfc", "nfkc", "none"):
            raise DataError(f"normalization={self.normalization!r}; it must be 'nfc', 'nfkc' or 'none'")


def clean(text: str, options: CleanOptions = CleanOptions()) -> str:
    """The normalised text; ``clean(clean(x)) == clean(x)``."""
    ascii_only = text.isascii()
    plain = ascii_only or not _SUSPECT.search(text)
    if options.whitespace and ("\r" in text if ascii_only else not plain):
        text = _LINE_END.sub("\n", text)
    if options.strip_control and ascii_only:
        text = _strip_ascii_control(text)
    if not ascii_only:
        text = _normalize(text, options, plain)
    elif options.lower_case:
        text = text.lower()
    if options.remove_punctuation:
        text = "".join(c for c in text if not unicodedata.category(c).startswith("P"))
        text = text if ascii_only else _normalize(text, options, plain)
    return _whitespace(text) if options.whitespace else text


def _normalize(text: str, options: CleanOptions, plain: bool) -> str:
    """Unicode form and case together: lower-casing can undo a form and a form can uncover capitals, so go on until
    both hold.
    """
    form = None if options.normalization == "none" else options.normalization.upper()
    start = text
    while True:
        before = text
        if form and not unicodedata.is_normalized(form, text):
            text = unicodedata.normalize(form, text)
        if options.lower_case:
            text = text.lower()
        if options.strip_control and not (plain and text is start):
            text = _CONTROL.sub("", text)
        if text == before:
            return text


def _strip_ascii_control(text: str) -> str:
    data = text.encode("ascii")
    kept = data.translate(None, _ASCII_CONTROL)
    return text if len(kept) == len(data) else kept.decode("ascii")


def _whitespace(text: str) -> str:
    text = text.strip("\n") if text[:1] == "\n" or text[-1:] == "\n" else text
    if (not text.isascii() and _SUSPECT.search(text)) or " \n" in text or "\t\n" in text or text[-1:] in (" ", "\t"):
        text = _TRAILING.sub("", text)
    if "\n\n\n\n" in text:
        text = _BLANK_LINES.sub("\n\n", text)
    return text.strip("\n")
