"""Counterfactual augmentation: texts again with words for one group in the place of another's
(Zhao et al. 2018; Lu et al. 2020).

    pairs = read_word_pairs("en")
    list(augmented(["He met the queen."], pairs))
    # ["He met the queen.", "She met the king."]
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from llm_jax.types import DataError

LANGUAGES = ("en", "pt")
"""Of our own lists of gendered words."""
_WORD = re.compile(r"[^\W\d_]+")
_KEYS = {"pairs", "one_way", "before_word", "determiners"}
_NONE: Mapping[str, str] = MappingProxyType({})


class WordPairs(NamedTuple):
    """Words and what takes their place, in lower case.

    Attributes:
        words: of each word the other one.
        before_word: the same, where another word follows after a blank: "her book" is "his book",
            and "saw her" is "saw him".
        determiners: words that change only directly before one that does, such as articles in
            Portuguese.
    """

    words: Mapping[str, str]
    before_word: Mapping[str, str] = _NONE
    determiners: Mapping[str, str] = _NONE


def read_word_pairs(source: str | Path) -> WordPairs:
    """A list of word pairs.

    Args:
        source: ``en`` or ``pt``, our lists; or a JSON file: an object with ``pairs`` and
            ``determiners`` (lists of two words, both ways), ``one_way`` and ``before_word``
            (objects). Plurals are pairs of their own.

    Raises:
        DataError: the file cannot be read, or a word has two others.
    """
    path = Path(source)
    if source in LANGUAGES:
        path = Path(__file__).with_name(f"word_pairs_{source}.json")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(
            f"word pairs {str(source)!r} cannot be read ({error.strerror}); give"
            f" {' or '.join(LANGUAGES)}, or a file"
        ) from error
    except ValueError as error:
        raise DataError(f"{str(path)!r} is not valid JSON ({error})") from error
    if not isinstance(value, dict) or not value.keys() <= _KEYS or not value.get("pairs"):
        raise DataError(
            f"{str(path)!r} is no list of word pairs; it must have pairs, and may have"
            f" {', '.join(sorted(_KEYS - {'pairs'}))}"
        )
    words = _both_ways(path, "pairs", value["pairs"]) | _texts(path, value, "one_way")
    return WordPairs(
        words=words,
        before_word=_texts(path, value, "before_word"),
        determiners=_both_ways(path, "determiners", value.get("determiners", [])),
    )


def _both_ways(path: Path, name: str, pairs: Any) -> dict[str, str]:
    found: dict[str, str] = {}
    for pair in pairs if isinstance(pairs, list) else [pairs]:
        if not isinstance(pair, list) or len(pair) != 2 or not all(map(_is_word, pair)):
            raise DataError(
                f"{str(path)!r}: {name} has {pair!r}; two words in lower case are expected"
            )
        for word, other in (pair, pair[::-1]):
            if word in found:
                raise DataError(f"{str(path)!r}: {name} has {word!r} twice; give each word once")
            found[word] = other
    return found


def _texts(path: Path, value: Mapping[str, Any], name: str) -> dict[str, str]:
    found = value.get(name, {})
    if not isinstance(found, dict) or not all(map(_is_word, [*found, *found.values()])):
        raise DataError(f"{str(path)!r}: {name} is {found!r}; words in lower case are expected")
    return found


def _is_word(value: Any) -> bool:
    return isinstance(value, str) and bool(_WORD.fullmatch(value)) and value == value.lower()


def swap_words(text: str, pairs: WordPairs) -> str:
    """The text with the other word of each pair in its place.

    "WORD", "Word" and "word" keep their case; all that is no word of the list stays. Words that
    agree with a changed one elsewhere in the sentence, such as adjectives in Portuguese, do not
    change.
    """
    matches = list(_WORD.finditer(text))
    changed: dict[int, str] = {}
    for at, match in enumerate(matches):
        word = match[0].lower()
        if word not in pairs.words:
            continue
        follows = at + 1 < len(matches) and _only_blank(text, match, matches[at + 1])
        other = pairs.before_word.get(word) if follows else None
        changed[at] = other or pairs.words[word]
        before = at - 1
        while before >= 0 and _only_blank(text, matches[before], matches[before + 1]):
            determiner = pairs.determiners.get(matches[before][0].lower())
            if determiner is None:
                break
            changed[before] = determiner
            before -= 1
    parts = []
    end = 0
    for at in sorted(changed):
        parts += [text[end : matches[at].start()], _in_case_of(matches[at][0], changed[at])]
        end = matches[at].end()
    return "".join([*parts, text[end:]])


def augmented(texts: Iterable[str], pairs: WordPairs) -> Iterator[str]:
    """Each text, and after it the same with its words swapped where that changes it."""
    for text in texts:
        yield text
        other = swap_words(text, pairs)
        if other != text:
            yield other


def _only_blank(text: str, match: re.Match[str], following: re.Match[str]) -> bool:
    return text[match.end() : following.start()].isspace()


def _in_case_of(word: str, other: str) -> str:
    if len(word) > 1 and word.isupper():
        return other.upper()
    return other[0].upper() + other[1:] if word[0].isupper() else other
