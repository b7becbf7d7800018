"""Text normalisation: one pure, idempotent function."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from typing import Literal

from llm_jax.types import DataError

Normalization = Literal["nfc", "nfkc", "none"]

# The line ends of str.splitlines but \r and \n, which stand between words: form feeds end the pages
# of text from PDF files.
_LINE_END = re.compile("[\x0b\x0c\x1c-\x1e\x85\u2028\u2029]")
# What else stands between words: the unit separator and the marks around an interlinear annotation.
_BLANKS = ("\x1f", "\ufffa", "\ufffb")
# They, and what stands within words: the other controls (of Unicode's bidirectional class BN, which
# separates nothing), byte order mark, soft hyphen, word joiner. U+200C and U+200D (zero-width
# non-joiner and joiner) stay: Indic and Arabic scripts and emoji need them.
_CONTROL = re.compile("[\x00-\x08\x0e-\x1b\x1f\x7f-\x84\x86-\x9f\u00ad\u2060\ufeff\ufff9-\ufffb]")
# The scripts that are written without blanks (Thai, Lao, Myanmar, Khmer, Tai and Ahom: those of
# Unicode's line breaking class SA), where a writer marks the end of a word by a zero-width space.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u1950-\u19df\u1a20-\u1aaf"
    "\ua9e0-\ua9ff\uaa60-\uaadf\U00011700-\U0001174f"
)
# Elsewhere it only allows a line to be broken, as after the slashes of an address, and goes.
_LINE_BREAK_HINT = re.compile(f"(?<![{_UNSPACED}\u200b])\u200b+(?![{_UNSPACED}\u200b])")
_WORD_ENDS = re.compile("\u200b{2,}")

_ASCII_LINE_ENDS = b"\x0b\x0c\x1c\x1d\x1e"
_ASCII_CONTROL = bytes(c for c in [*range(0x20), 0x7F] if c not in b"\n\t")
_ASCII_WITHIN = _ASCII_CONTROL.translate(None, _ASCII_LINE_ENDS + b"\x1f")
_ASCII_BETWEEN = bytes.maketrans(_ASCII_LINE_ENDS + b"\x1f", b"\n" * 5 + b" ")

# What a text that is not ASCII must hold for the slower steps to have anything to do.
_SUSPECT = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\xa0\u00ad\u1680\u2000-\u200b\u2028\u2029\u202f\u205f\u2060\u3000\ufeff\ufff9-\ufffb]"
)
# From the start of a run of blanks and without a retry, so that a long run inside of a line is read
# once.
_TRAILING = re.compile(r"(?<![^\S\n])[^\S\n]++(?=\n|\Z)")
_BLANK_LINES = re.compile(r"\n{4,}")


@dataclass(frozen=True)
class CleanOptions:
    """What ``clean`` does.

    normalization: Unicode form; ``"nfc"`` joins accents to their letters, ``"nfkc"`` also folds
        ligatures, widths and superscripts (it changes code and formulas), ``"none"`` leaves
        characters as they are.
    strip_control: drop control characters (but tab and newline), byte order marks and zero-width
        characters without meaning. Those that stand between words are replaced: line and page
        separators (carriage return, vertical tab, form feed, U+001C to U+001E, U+0085, U+2028,
        U+2029) by ``\\n``, the unit separator U+001F by a blank. A zero-width space stays beside
        Thai, Khmer and other letters that are written without blanks, where it ends a word.
    whitespace: line and page separators become ``\\n``, blanks at line ends go, more than two blank
        lines in a row become one; indentation stays.
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
            raise DataError(
                f"normalization={self.normalization!r}; it must be 'nfc', 'nfkc' or 'none'"
            )


def clean(text: str, options: CleanOptions = CleanOptions()) -> str:
    """The normalised text; ``clean(clean(x)) == clean(x)``."""
    ascii_only = text.isascii()
    plain = ascii_only or not _SUSPECT.search(text)
    separate = options.whitespace or options.strip_control
    if separate and "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    if ascii_only and options.strip_control:
        text = _strip_ascii_control(text)
    elif separate and (ascii_only or not plain):
        text = _LINE_END.sub("\n", text)
    if not ascii_only:
        text = _normalize(text, options, plain)
    elif options.lower_case:
        text = text.lower()
    if options.remove_punctuation:
        text = "".join(c for c in text if not unicodedata.category(c).startswith("P"))
        text = text if ascii_only else _normalize(text, options, plain)
    return _whitespace(text) if options.whitespace else text


def _normalize(text: str, options: CleanOptions, plain: bool) -> str:
    """Unicode form and case together: lower-casing can undo a form and a form can uncover capitals,
    so go on until both hold.
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
            text = _strip_control(text)
        if text == before:
            return text


def _strip_control(text: str) -> str:
    text = _CONTROL.sub(lambda found: " " if found[0] in _BLANKS else "", text)
    if "\u200b" in text:
        text = _WORD_ENDS.sub("\u200b", _LINE_BREAK_HINT.sub("", text))
    return text


def _strip_ascii_control(text: str) -> str:
    data = text.encode("ascii")
    if len(data.translate(None, _ASCII_CONTROL)) == len(data):
        return text
    return data.translate(_ASCII_BETWEEN, _ASCII_WITHIN).decode("ascii")


def _whitespace(text: str) -> str:
    text = text.strip("\n") if text[:1] == "\n" or text[-1:] == "\n" else text
    if _may_trail(text):
        text = _TRAILING.sub("", text)
    if "\n\n\n\n" in text:
        text = _BLANK_LINES.sub("\n\n", text)
    return text.strip("\n")


def _may_trail(text: str) -> bool:
    """False where no line can end with blanks."""
    if " \n" in text or "\t\n" in text or text[-1:] in (" ", "\t") or "\x1f" in text:
        return True
    return not text.isascii() and _SUSPECT.search(text) is not None
