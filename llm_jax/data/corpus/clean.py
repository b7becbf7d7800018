"""Text normalisation: one pure, idempotent function."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from typing import Literal

from llm_jax.types import DataError

Normalization = Literal["nfc", "nfkc", "none"]

_FORMS: dict[Normalization, Literal["NFC", "NFKC"] | None] = {
    "nfc": "NFC",
    "nfkc": "NFKC",
    "none": None,
}

# The line ends of str.splitlines except \r and \n. They separate words: form feeds end the pages of
# text from PDF files.
_LINE_END = re.compile("[\x0b\x0c\x1c-\x1e\x85\u2028\u2029]")
# Other separators of words: the unit separator and the marks around an interlinear
# annotation.
_BLANKS = ("\x1f", "\ufffa", "\ufffb")
# These separators, and what occurs within words: the other controls (of Unicode's bidirectional
# class BN, which separates nothing), byte order mark, soft hyphen, word joiner. U+200C and U+200D
# (zero-width non-joiner and joiner) are kept: Indic and Arabic scripts and emoji need them.
_CONTROL = re.compile("[\x00-\x08\x0e-\x1b\x1f\x7f-\x84\x86-\x9f\u00ad\u2060\ufeff\ufff9-\ufffb]")
# The scripts that are written without blanks (Thai, Lao, Myanmar, Khmer, Tai and Ahom: those of
# Unicode's line breaking class SA), where a writer marks the end of a word by a zero-width space.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u1950-\u19df\u1a20-\u1aaf"
    "\ua9e0-\ua9ff\uaa60-\uaadf\U00011700-\U0001174f"
)
# Elsewhere a zero-width space only allows a line break, as after a slash of an address; dropped.
_LINE_BREAK_HINT = re.compile(f"(?<![{_UNSPACED}\u200b])\u200b+(?![{_UNSPACED}\u200b])")
_WORD_ENDS = re.compile("\u200b{2,}")

_ASCII_LINE_ENDS = b"\x0b\x0c\x1c\x1d\x1e"
_ASCII_CONTROL = bytes(c for c in [*range(0x20), 0x7F] if c not in b"\n\t")
_ASCII_WITHIN = _ASCII_CONTROL.translate(None, _ASCII_LINE_ENDS + b"\x1f")
_ASCII_BETWEEN = bytes.maketrans(_ASCII_LINE_ENDS + b"\x1f", b"\n" * 5 + b" ")

# A text that is not ASCII needs the slower steps only if it holds one of these.
_SUSPECT = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\xa0\u00ad\u1680\u2000-\u200b\u2028\u2029\u202f\u205f\u2060\u3000\ufeff\ufff9-\ufffb]"
)
# Matches from the start of a run of blanks and never backtracks, so that a long run within a line
# is read once.
_TRAILING = re.compile(r"(?<![^\S\n])[^\S\n]++(?=\n|\Z)")
_BLANK_LINES = re.compile(r"\n{4,}")


@dataclass(frozen=True)
class CleanOptions:
    """Options of ``clean``.

    Attributes:
        normalization: Unicode form; ``"nfc"`` composes letters and accents, ``"nfkc"`` also folds
            ligatures, widths and superscripts (it changes code and formulas), ``"none"`` leaves
            characters as they are.
        strip_control: drop control characters except tab and newline, byte order marks and
            zero-width characters without meaning. Separators of words are replaced: those of lines
            and pages (carriage return, vertical tab, form feed, U+001C to U+001E, U+0085, U+2028,
            U+2029) by ``\\n``, the unit separator U+001F by a blank. A zero-width space is kept
            beside Thai, Khmer and other letters that are written without blanks, where it ends a
            word.
        whitespace: replace line and page separators by ``\\n``, strip blanks at line ends, reduce
            more than two blank lines in a row to one; indentation is kept.
        lower_case: lower-case everything.
        remove_punctuation: drop all characters of Unicode's punctuation categories.
    """

    normalization: Normalization = "nfc"
    strip_control: bool = True
    whitespace: bool = True
    lower_case: bool = False
    remove_punctuation: bool = False

    def __post_init__(self) -> None:
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
    """Apply Unicode form and case until neither changes the text.

    Lower-casing can undo a form, and a form can produce capitals.
    """
    form = _FORMS[options.normalization]
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
    """Whether a line may end with blanks; a fast test that can be wrong only with True."""
    if " \n" in text or "\t\n" in text or text[-1:] in (" ", "\t") or "\x1f" in text:
        return True
    return not text.isascii() and _SUSPECT.search(text) is not None
