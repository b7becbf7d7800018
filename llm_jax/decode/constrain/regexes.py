"""Python's regular expressions in the syntax of Rust, which llguidance reads.

Python's own parser reads the pattern, so that what is written means what Python means. A
construct that a finite automaton does not have is refused by name.
"""

from __future__ import annotations

import re
import re._constants as sre
import re._parser as sre_parser
from collections.abc import Iterable
from typing import Any, NamedTuple

from llm_jax.types import ConfigError

# The characters of a class that Python, ECMAScript and Rust all have in it, for \d and its like;
# and those that none of them has in it, for \D and its like.
_CATEGORIES = {
    sre.CATEGORY_DIGIT: "0-9",
    sre.CATEGORY_WORD: "0-9A-Za-z_",
    sre.CATEGORY_SPACE: r"\t\n\x0B\x0C\r ",
    sre.CATEGORY_NOT_DIGIT: r"\P{Nd}",
    sre.CATEGORY_NOT_WORD: r"[^\p{L}\p{M}\p{N}\p{Pc}\p{Alphabetic}\x{200C}\x{200D}]",
    sre.CATEGORY_NOT_SPACE: r"[^\s\x{1C}-\x{1F}\x{FEFF}]",
}
# The same inside of a negated set, where more must be taken away.
_TAKEN_AWAY = {
    sre.CATEGORY_DIGIT: r"\p{Nd}",
    sre.CATEGORY_WORD: r"\p{L}\p{M}\p{N}\p{Pc}\p{Alphabetic}\x{200C}\x{200D}",
    sre.CATEGORY_SPACE: r"\s\x{1C}-\x{1F}\x{FEFF}",
    sre.CATEGORY_NOT_DIGIT: "[^0-9]",
    sre.CATEGORY_NOT_WORD: "[^0-9A-Za-z_]",
    sre.CATEGORY_NOT_SPACE: r"[^\t\n\x0B\x0C\r ]",
}
_ANY = r"[^\n\r\x{2028}\x{2029}]"
_REFUSED = {
    sre.ASSERT: "look-around",
    sre.ASSERT_NOT: "look-around",
    sre.GROUPREF: "a backreference",
    sre.GROUPREF_EXISTS: "a condition on a group",
    sre.ATOMIC_GROUP: "an atomic group",
    sre.POSSESSIVE_REPEAT: "a possessive repeat",
    sre.FAILURE: "an empty look-around",
}


class _Place(NamedTuple):
    """Where a part of a pattern is.

    Attributes:
        start: whether nothing of the text is before it.
        end: whether nothing of the text is after it.
        flags: of ``re``.
    """

    start: bool
    end: bool
    flags: int


class Translation:
    """One pattern in Rust's syntax.

    Args:
        pattern: in Python's syntax.
        name: of the pattern, for messages.
        whole: whether the whole text must match; otherwise ``^`` and ``$`` are kept.

    Raises:
        ConfigError: Python cannot read the pattern, or it has a construct that is not supported.
    """

    def __init__(self, pattern: str, name: str, *, whole: bool) -> None:
        self._pattern = pattern
        self._name = name
        self._whole = whole
        try:
            parsed = sre_parser.parse(pattern)
        except (re.error, OverflowError, RecursionError) as error:
            raise ConfigError(f"{name} {pattern[:80]!r} is not a valid pattern: {error}") from error
        self.text = self._sequence(parsed, _Place(True, True, parsed.state.flags))

    def _refuse(self, what: str, fix: str = "write the pattern without it") -> ConfigError:
        return ConfigError(
            f"{self._name} {self._pattern[:80]!r} has {what}, which constrained decoding does not"
            f" support; {fix}"
        )

    def _sequence(self, parts: Any, place: _Place) -> str:
        parts = list(parts)
        # Anchors take no text: what is next to one is at the start or the end as well.
        at = [op is sre.AT for op, _ in parts]
        out: list[str] = []
        for i, (op, value) in enumerate(parts):
            start = place.start and all(at[:i])
            end = place.end and all(at[i + 1 :])
            out.append(self._part(op, value, _Place(start, end, place.flags)))
        return "".join(out)

    def _part(self, op: Any, value: Any, place: _Place) -> str:
        if op in _REFUSED:
            raise self._refuse(_REFUSED[op])
        if op is sre.AT:
            return self._anchor(value, place)
        if op is sre.BRANCH:
            return self._group("|".join(self._sequence(part, place) for part in value[1]))
        if op is sre.SUBPATTERN:
            _, added, removed, part = value
            inner = place._replace(flags=(place.flags | added) & ~removed)
            return self._group(self._sequence(part, inner))
        if op in (sre.MAX_REPEAT, sre.MIN_REPEAT):
            return self._repeat(value, place)
        return self._flagged(self._characters(op, value, place), place)

    def _characters(self, op: Any, value: Any, place: _Place) -> str:
        """A part that is one character of the text."""
        if op is sre.LITERAL:
            return self._character(value)
        if op is sre.ANY:
            return r"[\s\S]" if place.flags & re.DOTALL else _ANY
        if op is sre.NOT_LITERAL:
            return self._set([(sre.NEGATE, None), (sre.LITERAL, value)], place)
        if op is sre.IN:
            return self._set(value, place)
        raise self._refuse(f"{op}")

    def _set(self, items: list[tuple[Any, Any]], place: _Place) -> str:
        negated = items[0][0] is sre.NEGATE
        if negated and place.flags & re.IGNORECASE:
            raise self._refuse(
                "a negated set that ignores case", "write both cases in place of the flag i"
            )
        inside = "".join(self._item(op, value, negated) for op, value in items[negated:])
        return f"[^{inside}]" if negated else f"[{inside}]"

    def _item(self, op: Any, value: Any, negated: bool) -> str:
        if op is sre.LITERAL:
            return self._character(value)
        if op is sre.RANGE:
            first, last = value
            return f"{self._character(first)}-{self._character(last)}"
        if op is sre.CATEGORY:
            return _TAKEN_AWAY[value] if negated else _CATEGORIES[value]
        raise self._refuse(f"{op}")

    def _character(self, code: int) -> str:
        if 0xD800 <= code < 0xE000:
            raise self._refuse(f"the surrogate U+{code:04X}")
        character = chr(code)
        plain = character.isascii() and character.isalnum()
        return character if plain else rf"\x{{{code:X}}}"

    def _repeat(self, value: Any, place: _Place) -> str:
        least, most, part = value
        inner = _Place(False, False, place.flags)
        if most == 1:
            # At most once: what is at the start or the end of the whole stays there.
            inner = place
        upper = "" if most is sre.MAXREPEAT else str(most)
        return f"{self._group(self._sequence(part, inner))}{{{least},{upper}}}"

    def _anchor(self, where: Any, place: _Place) -> str:
        if where not in (sre.AT_BEGINNING, sre.AT_BEGINNING_STRING, sre.AT_END, sre.AT_END_STRING):
            raise self._refuse("a word boundary")
        if place.flags & re.MULTILINE:
            raise self._refuse("^ or $ for each line", "leave the flag m out")
        begins = where in (sre.AT_BEGINNING, sre.AT_BEGINNING_STRING)
        if not (place.start if begins else place.end):
            raise self._refuse("^ or $ inside of the text")
        if self._whole:
            return ""
        return "^" if begins else "$"

    def _flagged(self, text: str, place: _Place) -> str:
        return f"(?i:{text})" if place.flags & re.IGNORECASE else text

    @staticmethod
    def _group(text: str) -> str:
        return f"(?:{text})"


def any_of(texts: Iterable[str]) -> str:
    """A pattern in Rust's syntax that is exactly the texts."""
    return "|".join("".join(map(_literal, text)) for text in texts)


def _literal(character: str) -> str:
    plain = character.isascii() and character.isalnum()
    return character if plain else rf"\x{{{ord(character):X}}}"
