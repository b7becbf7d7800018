"""What a constraint may be, and what is refused by name."""

from __future__ import annotations

import re

import pytest

pytest.importorskip("llguidance", reason="needs the extra: pip install -e '.[constrain]'")

from constrained_rows import ALL_KINDS, vocabulary_of

from llm_jax.decode.constrain import (
    Choices,
    GrammarVocabulary,
    JsonSchema,
    Lark,
    Regex,
    compile_constraint,
    library,
)
from llm_jax.types import ConfigError

OBJECT = {"type": "object", "additionalProperties": False}


def refused(constraint, kind: str = "byte-level") -> str:
    with pytest.raises(ConfigError) as caught:
        compile_constraint(constraint(), vocabulary_of(kind))
    return str(caught.value)


@pytest.mark.parametrize(
    ("choices", "why"),
    [
        ([], "choices (--choices) is empty; give at least one"),
        (["a", ""], "empty text at place 1"),
        (["a", "b", "a"], "has 'a' more than once"),
        ("yes", "give a list of strings"),
        (["a", 3], "give a list of strings"),
        (["a\ud800"], "unpaired surrogate at character 1"),
    ],
)
def test_choices_that_are_refused(choices, why):
    assert why in refused(lambda: Choices(choices))


@pytest.mark.parametrize(
    ("pattern", "why"),
    [
        ("", "is empty"),
        (3, "must be a string"),
        ("[", "is not a valid pattern: unterminated character set"),
        ("a{3,2}", "is not a valid pattern"),
        ("(?=a)b", "has look-around"),
        ("(?<!a)b", "has look-around"),
        (r"(a)\1", "has a backreference"),
        (r"(a)?(?(1)b|c)", "has a condition on a group"),
        (r"\bfoo", "has a word boundary"),
        ("a++", "has a possessive repeat"),
        ("(?>a|ab)c", "has an atomic group"),
        ("(?m)^a$", "leave the flag m out"),
        ("a^b", "^ or $ inside of the text"),
        ("(a$)+b", "^ or $ inside of the text"),
        ("(?i)[^a]", "write both cases"),
        ("\ud800", "unpaired surrogate"),
        (r"a[^\d\D]", "no text satisfies it"),
    ],
)
def test_patterns_that_are_refused(pattern, why):
    assert why in refused(lambda: Regex(pattern))


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        ("{", "is not valid JSON"),
        ('{"type": "string", "type": "null"}', "key 'type' comes twice"),
        ("[1]", "must be an object"),
        ({"const": float("nan")}, "is not valid JSON"),
        ({"a": {1}}, "is not valid JSON"),
        (False, "is false, which no JSON satisfies"),
        ({"not": {"type": "null"}}, 'has not {"type": "null"} at #,'),
        (
            {"properties": {"a/b": {"uniqueItems": True}}},
            "has uniqueItems true at #/properties/a~1b",
        ),
        ({"items": {"if": {}, "then": {}}}, "has if {} at #/items"),
        ({"type": "object", "dependentRequired": {"a": ["b"]}}, "has dependentRequired"),
        ({"type": "string", "format": "color"}, 'has format "color" at #'),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "has oneOf"),
        ({"type": "object", "minProperties": 2}, "has minProperties 2 at #, and a key"),
        (
            OBJECT | {"patternProperties": {"a": {}}, "minProperties": 2},
            "has minProperties 2 at #, and a key",
        ),
        (
            {"type": "object", "properties": {"a": {}}, "maxProperties": 1},
            "has maxProperties 1 at #",
        ),
        ({"type": "object", "propertyNames": {"pattern": "a"}}, "use patternProperties"),
        ({"anyOf": [{"contains": {}}]}, "has contains {} at #/anyOf/0"),
        ({"unevaluatedProperties": False}, "use additionalProperties"),
        ({"type": "string", "pattern": "(?=a)b"}, "pattern at # '(?=a)b' has look-around"),
        ({"patternProperties": {r"\ba": {}}}, "patternProperties at #"),
        ({"items": {"pattern": "a^b", "type": "string"}}, "pattern at #/items"),
        ({"enum": []}, "no JSON satisfies it"),
        ({"type": "integer", "minimum": 5, "maximum": 3}, "no JSON satisfies it (minimum (5)"),
        ({"allOf": [{"type": "string"}, {"type": "null"}]}, "no JSON satisfies it"),
        (OBJECT | {"required": ["a"]}, "required property 'a' is unsatisfiable"),
        ({"type": "string", "pattern": "^aa$", "maxLength": 1}, "no JSON satisfies it"),
        ({"$ref": "#"}, "no finite JSON satisfies it"),
        (
            {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]},
            "no finite JSON satisfies it",
        ),
        (
            {
                "$defs": {"n": {"type": "array", "items": {"$ref": "#/$defs/n"}, "minItems": 1}},
                "anyOf": [{"$ref": "#/$defs/n"}],
            },
            "no finite JSON satisfies it",
        ),
        ({"$ref": "#/parts/a", "parts": {"a": {}}}, "put the schema into $defs"),
        ({"$ref": "#/$defs/b", "$defs": {"a": {}}}, "no schema is there"),
        ({"$ref": "http://example.org/a"}, "cannot be used: Resource"),
        ({"x-guidance": {"lenient": True}, "not": {}}, "has x-guidance at #"),
        ({"items": [{"type": "null"}]}, "has a list in items at #"),
        (
            {"$schema": "http://json-schema.org/draft-07/schema#", "prefixItems": [{}]},
            "has a list in prefixItems at #",
        ),
        ({"enum": ["a\x01"]}, "whose character U+0001"),
        ({"properties": {"a\x00": {}}}, "whose character U+0000"),
        ({"items": 3}, "has 3 at #/items; it must be an object or a boolean"),
        ({"type": "strin"}, "Invalid type: strin"),
    ],
)
def test_schemas_that_are_refused(schema, why):
    assert why in refused(lambda: JsonSchema(schema))


@pytest.mark.parametrize(
    "schema",
    [
        True,
        '{"type": "string"}',
        # Those that end, though they refer to themselves.
        {"type": "object", "properties": {"a": {"$ref": "#"}}},
        {"type": "array", "items": {"$ref": "#"}},
        {"anyOf": [{"type": "null"}, {"type": "array", "items": {"$ref": "#"}, "minItems": 1}]},
        # An annotation, and a keyword of nobody.
        {"type": "null", "title": "not", "x-order": 3, "description": "if"},
        # Names and values that look like keywords.
        {"type": "object", "properties": {"not": {"type": "null"}, "pattern": {"const": "(?=a)"}}},
        {"$schema": "http://json-schema.org/draft-07/schema#", "items": [{"type": "null"}]},
    ],
)
def test_schemas_that_are_taken(schema):
    assert compile_constraint(JsonSchema(schema), vocabulary_of("byte-level"))


@pytest.mark.parametrize(
    ("grammar", "why"),
    [
        (" ", "is empty"),
        ('foo: "a"', "no start rule found"),
        ("start: foo", 'unknown name: "foo"'),
        ('start: start "a"', "no text satisfies it"),
        ('start: %json {"not": {}}', "Unimplemented keys"),
        ('start: %json {"x-guidance": {}}', "has x-guidance"),
        ("start: %json {", "schema of %json is not valid JSON"),
    ],
)
def test_grammars_that_are_refused(grammar, why):
    assert why in refused(lambda: Lark(grammar))


@pytest.mark.parametrize("whitespace", [-1, 1001, True, 1.0, None])
def test_white_space_out_of_range(whitespace):
    for constraint in (JsonSchema, Lark):
        with pytest.raises(ConfigError, match=re.escape(f"is {whitespace!r}; it must be 0 to")):
            constraint("{}", whitespace=whitespace)


def test_a_model_without_a_tokenizer_is_refused():
    with pytest.raises(ConfigError, match="this model has no tokenizer"):
        GrammarVocabulary(None, 100)


def test_stop_ids_are_ids_of_the_model():
    tokenizer = vocabulary_of("byte-level")
    with pytest.raises(ConfigError, match=r"stop_ids has 9; this model has the ids 0 to 8"):
        GrammarVocabulary(tokenizer._source, 9, stop_ids=[9])


def test_a_choice_that_no_tokens_write_is_named():
    message = refused(lambda: Choices(["no", "no 日本"]), "unigram")
    assert "has 'no 日本', which this model has no tokens to write after 'no '" in message


def test_anything_else_is_no_constraint():
    assert "must be Choices, Regex, JsonSchema or Lark" in refused(lambda: "yes")


def test_a_missing_or_old_library_is_named_with_the_extra(monkeypatch):
    import importlib.metadata
    import sys

    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1.9.0")
    library.llguidance.cache_clear()
    with pytest.raises(ConfigError, match=r"llguidance 1.9.0 .* 1.9.1 or later .*\[constrain\]"):
        library.llguidance()
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(ConfigError, match=r"is not installed; pip install -e '.\[constrain\]'"):
        library.llguidance()
    monkeypatch.undo()
    library.llguidance.cache_clear()
    assert library.llguidance().LLMatcher


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_the_bytes_of_every_kind_of_tokenizer(kind):
    vocabulary = vocabulary_of(kind)
    tokenizer = vocabulary._source
    for id in range(vocabulary.count):
        silent = tokenizer.is_control(id) or id in (tokenizer.unk_id, *tokenizer.eos_ids)
        assert vocabulary.bytes_of(id) == (b"" if silent else tokenizer.decode_bytes([id]))
        assert vocabulary.has_text(id) == bool(vocabulary.bytes_of(id))
    for text in ('the <s> {"é": 日}', " a", "</s>", "x\n\ny"):
        ids = vocabulary._encode(text.encode())
        assert vocabulary.tokenizer.decode_bytes(ids) == text.encode()
