"""What a text must be: one of a list, or what a regex, a JSON schema or a grammar describes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from llm_jax.types import ConfigError

MAX_WHITESPACE = 1000


@dataclass(frozen=True)
class Choices:
    """The text is exactly one of ``texts``.

    Attributes:
        texts: the texts; one may be the beginning of another.

    Raises:
        ConfigError: there is none, one is empty, or two are equal.
    """

    texts: tuple[str, ...]

    def __init__(self, texts: Sequence[str]) -> None:
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise ConfigError(
                f"choices (--choices) is {str(texts)[:80]!r}; give a list of strings, as"
                " ['yes', 'no']"
            )
        if not texts:
            raise ConfigError("choices (--choices) is empty; give at least one text to choose")
        for place, text in enumerate(texts):
            if not text:
                raise ConfigError(
                    f"choices (--choices) has an empty text at place {place}; remove it"
                )
            check_text(f"text {place} of choices (--choices)", text)
        repeated = [text for place, text in enumerate(texts) if text in texts[:place]]
        if repeated:
            raise ConfigError(
                f"choices (--choices) has {repeated[0][:80]!r} more than once; give each text once"
            )
        object.__setattr__(self, "texts", tuple(texts))


@dataclass(frozen=True)
class Regex:
    """The whole text matches a regular expression, as ``re.fullmatch`` of Python has it.

    ``\\d``, ``\\w``, ``\\s`` and ``.`` are the characters on which Python, ECMAScript and Rust
    agree: ASCII digits, letters and white space, and all but line ends.

    Attributes:
        pattern: of Python's syntax, without look-around, backreferences, word boundaries and
            possessive parts.

    Raises:
        ConfigError: the pattern is empty. ``compile_constraint`` refuses what cannot be done.
    """

    pattern: str

    def __post_init__(self) -> None:
        check_text("regex (--regex)", self.pattern)
        if not self.pattern:
            raise ConfigError("regex (--regex) is empty; give a pattern, as '[0-9]{4}'")


@dataclass(frozen=True, init=False)
class JsonSchema:
    """The text is JSON that a schema allows.

    Properties come in the order of the schema. White space is bounded, since a model may otherwise
    write it until the last token. ``\\uXXXX`` is not written: every character stands for itself.

    Attributes:
        text: the schema as JSON.
        whitespace: most characters of white space at each place that allows any; 0 is compact.

    Raises:
        ConfigError: the schema is not valid JSON, repeats a key, or is neither an object nor a
            boolean; or ``whitespace`` is out of range.
    """

    text: str
    whitespace: int = field(default=1)

    def __init__(
        self, schema: Mapping[str, Any] | bool | str | bytes, *, whitespace: int = 1
    ) -> None:
        is_count = isinstance(whitespace, int) and not isinstance(whitespace, bool)
        if not is_count or not 0 <= whitespace <= MAX_WHITESPACE:
            raise ConfigError(
                f"whitespace (--json-whitespace) is {whitespace!r}; it must be 0 to"
                f" {MAX_WHITESPACE}"
            )
        object.__setattr__(self, "text", json.dumps(schema_value(schema)))
        object.__setattr__(self, "whitespace", whitespace)


@dataclass(frozen=True)
class Lark:
    """The text is what a context-free grammar describes.

    Attributes:
        grammar: in llguidance's form of Lark, with the rule ``start``. Regular expressions are
            Rust's. ``%json {…}`` stands for JSON of a schema, which is read as by ``JsonSchema``.
        whitespace: as of ``JsonSchema``, for ``%json``.

    Raises:
        ConfigError: the grammar is empty.
    """

    grammar: str
    whitespace: int = field(default=1, kw_only=True)

    def __post_init__(self) -> None:
        check_text("grammar (--grammar)", self.grammar)
        if not self.grammar.strip():
            raise ConfigError('grammar (--grammar) is empty; give rules, as \'start: "a" | "b"\'')
        JsonSchema(True, whitespace=self.whitespace)


Constraint: TypeAlias = Choices | Regex | JsonSchema | Lark


def check_text(name: str, text: Any) -> None:
    """Raises ConfigError for anything but a string that UTF-8 can hold."""
    if not isinstance(text, str):
        raise ConfigError(f"{name} is {str(text)[:80]!r}; it must be a string")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"{name} has an unpaired surrogate at character {error.start}; remove it"
        ) from None


def schema_value(schema: Any) -> Any:
    """A schema as the value that JSON makes of it.

    Raises:
        ConfigError: see ``JsonSchema``.
    """
    name = "JSON schema (--json-schema)"
    try:
        text = schema if isinstance(schema, str | bytes) else json.dumps(schema, allow_nan=False)
        value = json.loads(text, object_pairs_hook=_each_key_once, parse_constant=_no_constant)
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"{name} is not valid JSON: {error}; fix it") from error
    if not isinstance(value, dict | bool):
        raise ConfigError(
            f"{name} is {str(value)[:80]!r}; it must be an object, as {{'type': 'object'}}, or a"
            " boolean"
        )
    return value


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"key {repeated!r} comes twice in one object")
    return made


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
