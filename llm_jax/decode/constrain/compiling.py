"""Turns a constraint into a grammar over the tokens of one model."""

from __future__ import annotations

import json
import re
from functools import partial
from typing import Any

from llm_jax.decode.constrain import schemas
from llm_jax.decode.constrain.compiled import CompiledConstraint
from llm_jax.decode.constrain.constraints import (
    Choices,
    Constraint,
    JsonSchema,
    Lark,
    Regex,
    schema_value,
)
from llm_jax.decode.constrain.library import llguidance
from llm_jax.decode.constrain.matchers import Matchers
from llm_jax.decode.constrain.regexes import Translation, any_of
from llm_jax.decode.constrain.vocabulary import GrammarVocabulary
from llm_jax.types import ConfigError


def compile_constraint(constraint: Constraint, vocabulary: GrammarVocabulary) -> CompiledConstraint:
    """Turns a constraint into a grammar over the tokens of a model.

    Takes from 1 ms to a second, by the size of the grammar.

    Args:
        constraint: what the text must be.
        vocabulary: the tokens of the model.

    Raises:
        ConfigError: the constraint asks for something that cannot be honoured exactly, no text
            satisfies it, or the model has no tokens to write it with. The message names the
            keyword or the construct, and the fix.
    """
    library = llguidance()
    if not isinstance(constraint, Choices | Regex | JsonSchema | Lark):
        raise ConfigError(
            f"constraint is {str(constraint)[:80]!r}; it must be Choices, Regex, JsonSchema or Lark"
        )
    if isinstance(constraint, Choices):
        _check_writable(constraint, vocabulary)
    grammar = _grammar(library.LLMatcher, constraint)
    failed, messages = library.LLMatcher.validate_grammar_with_warnings(
        grammar, vocabulary.tokenizer
    )
    if failed or messages:
        raise _refusal(constraint, messages[0])
    start = library.LLMatcher(vocabulary.tokenizer, grammar, log_level=0)
    if start.is_error():
        raise _refusal(constraint, start.get_error())
    made = CompiledConstraint(constraint, vocabulary, start)
    _check_beginning(made)
    return made


def _grammar(matcher: Any, constraint: Constraint) -> str:
    if isinstance(constraint, Choices):
        return matcher.grammar_from_regex(any_of(constraint.texts))
    if isinstance(constraint, Regex):
        pattern = Translation(constraint.pattern, "regex (--regex)", whole=True).text
        return matcher.grammar_from_regex(pattern)
    if isinstance(constraint, JsonSchema):
        schema = schemas.prepared(schema_value(constraint.text))
        options = schemas.options(constraint.whitespace)
        return matcher.grammar_from_json_schema(json.dumps(schema), overrides=options)
    return matcher.grammar_from_lark(_with_schemas(constraint))


def _with_schemas(constraint: Lark) -> str:
    """A grammar whose JSON schemas are read as those of ``JsonSchema``."""
    out: list[str] = []
    rest = constraint.grammar
    decoder = json.JSONDecoder()
    while (found := re.search(r"%json\s*(?=\{)", rest)) is not None:
        out.append(rest[: found.end()])
        rest = rest[found.end() :]
        try:
            _, end = decoder.raw_decode(rest)
        except ValueError as error:
            raise ConfigError(
                f"grammar (--grammar): the schema of %json is not valid JSON: {error}; fix it"
            ) from error
        schema = schemas.prepared(schema_value(rest[:end]))
        schema["x-guidance"] = schemas.options(constraint.whitespace)
        out.append(json.dumps(schema))
        rest = rest[end:]
    return "".join([*out, rest])


def _refusal(constraint: Constraint, message: str) -> ConfigError:
    if isinstance(constraint, JsonSchema):
        return schemas.refusal(schema_value(constraint.text), message)
    name = _name(constraint)
    shown = " ".join(message.split())
    return ConfigError(f"{name} cannot be used: {shown[:300]}; fix it")


def _name(constraint: Constraint) -> str:
    names = {
        Choices: "choices (--choices)",
        Regex: "regex (--regex)",
        JsonSchema: schemas.NAME,
        Lark: "grammar (--grammar)",
    }
    return names[type(constraint)]


def _check_beginning(made: CompiledConstraint) -> None:
    """Raises ConfigError where no token may come first and the text may not be empty either."""
    rows = Matchers(made.vocabulary, [made, made], begins=[False, True])
    if not rows.bitmask().any():
        raise ConfigError(
            f"{_name(made.constraint)}: no text satisfies it, or this model has no tokens to write"
            " one; fix it"
        )


def _check_writable(constraint: Choices, vocabulary: GrammarVocabulary) -> None:
    """Raises ConfigError for a text that the tokens of the model cannot write."""
    known = frozenset(filter(None, map(vocabulary.bytes_of, range(vocabulary.count))))
    longest = max(map(len, known), default=0)
    reach = partial(_reached, known=known, longest=longest)
    for text in constraint.texts:
        data = text.encode()
        end = reach(data)
        if end < len(data):
            raise ConfigError(
                f"choices (--choices) has {text[:80]!r}, which this model has no tokens to write"
                f" after {data[:end].decode(errors='ignore')[-40:]!r}; write it with other"
                " characters"
            )


def _reached(data: bytes, known: frozenset[bytes], longest: int) -> int:
    """How many bytes of a text tokens can write, one after another."""
    ends = {0}
    for end in range(len(data)):
        if end in ends:
            sizes = range(1, min(longest, len(data) - end) + 1)
            ends.update(end + size for size in sizes if data[end : end + size] in known)
    return max(ends)
