"""Words of any language, for metrics: letters of every script count, punctuation does not."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator

# Scripts that put no spaces between words: each character, with its marks, is a word.
_UNSPACED = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Burmese
    (0x1780, 0x17FF),  # Khmer
    (0x3005, 0x3007),  # repetition of a Chinese character, zero
    (0x3040, 0x30FF),  # Hiragana, Katakana
    (0x31F0, 0x31FF),  # Katakana of Ainu
    (0x3400, 0x4DBF),  # Chinese characters, and so below
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x323AF),
)


def fold(text: str) -> str:
    """The text without case and without compatibility forms (NFKC, case folding)."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return unicodedata.normalize("NFKC", folded)


def unicode_words(text: str) -> list[str]:
    """Words of a text, folded: runs of letters, marks and digits of any script.

    Accents stay. Of Chinese, Japanese, Thai, Lao, Burmese and Khmer each character is a word.
    """
    return list(_words(fold(text)))


def _words(text: str) -> Iterator[str]:
    word = ""
    for character in text:
        kind = unicodedata.category(character)[0]
        if kind == "M" and word:
            word += character
            continue
        joins = kind in "LN" and not _unspaced(character)
        if word and not (joins and not _unspaced(word[0])):
            yield word
            word = ""
        if kind in "LN":
            word += character
    if word:
        yield word


def _unspaced(character: str) -> bool:
    code = ord(character)
    if code < _UNSPACED[0][0]:
        return False
    return any(low <= code <= high for low, high in _UNSPACED)
