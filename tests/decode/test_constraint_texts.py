"""Random schemas and patterns: what is finished always parses and validates, or matches; the rest
is refused.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

pytest.importorskip("llguidance", reason="needs the extra: pip install -e '.[constrain]'")
pytest.importorskip("jsonschema")

import jsonschema
from constrained_rows import COMPLETE_KINDS, random_text, vocabulary_of

from llm_jax.decode.constrain import JsonSchema, Regex, compile_constraint
from llm_jax.types import ConfigError

DRAFT = jsonschema.Draft202012Validator
CAMPAIGN = {"deadline": None, "suppress_health_check": list(HealthCheck)}

# --- JSON schemas

PATTERNS = st.sampled_from(
    [
        "^a+$",
        "b",
        "^[a-c]{1,3}$",
        r"^\d{2}$",
        "[é日]",
        '^a"b?$',
        "x|^y",
        "^$",
        r"\\",
        "a.b",
        "^(ab|a)$",
        r"^\w\s\W$",
        r"[^\w]$",
        "(^a|b)c",
        "a$|b",
        "(?i)^k",
        "^\U0001f600?$",
        "\\n",
    ]
)
NAMES = ["a", "b", "ab", "é", "", "x y", 'q"', "abc", "\\", "日\n"]
JSON = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(10**6), 10**6),
        st.sampled_from([1.5, 1e10, -0.25, 1e-7]),
        st.text('aé日\U0001f600"\\\n ', max_size=3),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=2), st.dictionaries(st.sampled_from(NAMES), inner, max_size=2)
    ),
    max_leaves=4,
)


def with_some(fixed: dict[str, Any], **optional: Any) -> Any:
    return st.fixed_dictionaries({k: st.just(v) for k, v in fixed.items()}, optional=optional)


STRINGS = with_some(
    {"type": "string"},
    minLength=st.integers(0, 2),
    maxLength=st.integers(0, 4),
    pattern=PATTERNS,
)
NUMBERS = st.one_of(
    with_some(
        {"type": "integer"},
        minimum=st.integers(-20, 20),
        exclusiveMaximum=st.integers(-5, 300),
        multipleOf=st.integers(1, 7),
    ),
    with_some(
        {"type": "number"},
        minimum=st.sampled_from([-3, -1.5, 0, 0.1, 2.25]),
        exclusiveMinimum=st.sampled_from([-3, 0.5]),
        maximum=st.sampled_from([-1.25, 0, 1, 3.5, 1e3]),
    ),
    with_some({"type": "number"}, multipleOf=st.sampled_from([0.5, 0.25, 2])),
    with_some({"type": "integer"}, maximum=st.sampled_from([0.5, 10.5])),
)
FORMATS = ["date", "time", "date-time", "email", "uuid", "ipv4", "ipv6", "hostname", "uri"]
LEAVES = st.one_of(
    STRINGS,
    STRINGS,
    NUMBERS,
    NUMBERS,
    st.just({"type": "boolean"}),
    st.just({"type": "null"}),
    st.builds(lambda values: {"enum": values}, st.lists(JSON, min_size=1, max_size=3)),
    st.builds(lambda value: {"const": value}, JSON),
    st.sampled_from(
        [
            True,
            {},
            {"type": ["string", "null"], "maxLength": 2},
            {"type": ["integer", "string"], "minimum": 3, "minLength": 2},
            {"minimum": 3},
            {"minLength": 2},
            {"required": ["a"]},
            {"maxItems": 1},
            {"not": {"type": "null"}},
            {"type": "array", "uniqueItems": True},
        ]
    ),
    st.builds(lambda name: {"type": "string", "format": name}, st.sampled_from(FORMATS)),
)


@st.composite
def objects(draw, inner) -> dict[str, Any]:
    names = draw(st.lists(st.sampled_from(NAMES), unique=True, max_size=3))
    schema: dict[str, Any] = {"type": "object", "properties": {n: draw(inner) for n in names}}
    if draw(st.booleans()):
        schema["required"] = [name for name in [*names, "b"] if draw(st.booleans())]
    more = draw(st.sampled_from(["", "", "no", "no", "schema"]))
    if more:
        schema["additionalProperties"] = False if more == "no" else draw(inner)
    if draw(st.integers(0, 4)) == 0:
        schema["patternProperties"] = {draw(PATTERNS): draw(inner)}
    for keyword in ("minProperties", "maxProperties"):
        if draw(st.integers(0, 7)) == 0:
            schema[keyword] = draw(st.integers(0, 3))
    return schema


def arrays(inner) -> Any:
    return with_some(
        {"type": "array"},
        items=inner,
        prefixItems=st.lists(inner, min_size=1, max_size=2),
        minItems=st.integers(0, 2),
        maxItems=st.integers(0, 4),
    )


def several(inner) -> Any:
    lists = st.lists(inner, min_size=1, max_size=3)
    return st.one_of(
        st.builds(lambda parts: {"anyOf": parts}, lists),
        st.builds(lambda parts: {"oneOf": parts}, lists),
        st.builds(lambda parts: {"allOf": parts}, st.lists(inner, min_size=1, max_size=2)),
        st.builds(lambda parts, more: {"anyOf": parts} | more, lists, STRINGS),
    )


SCHEMAS = st.recursive(
    LEAVES, lambda inner: st.one_of(objects(inner), arrays(inner), several(inner)), max_leaves=6
)
RECURSIVE = st.builds(
    lambda value, extra: {
        "$defs": {
            "node": {
                "type": "object",
                "properties": {"v": value, "next": {"$ref": "#/$defs/node"}},
                "required": ["v"],
                "additionalProperties": extra,
            }
        },
        "$ref": "#/$defs/node",
    },
    LEAVES,
    st.booleans(),
)


def check_schema(schema: Any, seed: int, kind: str) -> str:
    """What becomes of a schema; fails for a finished text that it does not allow."""
    try:
        compiled = compile_constraint(JsonSchema(schema), vocabulary_of(kind))
    except ConfigError as error:
        assert "--json-schema" in str(error)
        return "refused"
    rng = np.random.default_rng(seed)
    ends = Counter()
    for forced in (False, True, True):
        made = random_text(compiled, rng, kind=kind, forced=forced)
        ends[made.finished] += 1
        if made.finished:
            value = json.loads(made.text)
            problem = next(iter(DRAFT(schema).iter_errors(value)), None)
            assert problem is None, (schema, made.text, problem.message)
    return "finished" if ends[True] else "cut"


@example(schema={"patternProperties": {"b": {"type": "string"}}, "type": "object"}, seed=0, kind=0)
@example(schema={"type": "integer", "multipleOf": 0.3}, seed=0, kind=0)
@given(
    schema=st.one_of(SCHEMAS, SCHEMAS, SCHEMAS, RECURSIVE),
    seed=st.integers(0, 2**32 - 1),
    kind=st.integers(0, len(COMPLETE_KINDS) - 1),
)
@settings(max_examples=40, **CAMPAIGN)
def test_finished_json_parses_and_validates(schema, seed, kind):
    check_schema(schema, seed, COMPLETE_KINDS[kind])


@pytest.mark.slow
@given(
    schema=st.one_of(SCHEMAS, SCHEMAS, SCHEMAS, RECURSIVE),
    seed=st.integers(0, 2**32 - 1),
    kind=st.sampled_from(COMPLETE_KINDS),
)
@settings(max_examples=1000, **CAMPAIGN)
def test_a_thousand_schemas(schema, seed, kind):
    check_schema(schema, seed, kind)


def test_usual_schemas_are_taken_and_finish():
    """A campaign in which everything is refused or cut would prove nothing."""
    person = {
        "type": "object",
        "properties": {
            "name": {"type": "string", "minLength": 1, "maxLength": 8},
            "age": {"type": "integer", "minimum": 0, "maximum": 150},
            "tags": {"type": "array", "items": {"enum": ["red", "é日"]}, "maxItems": 3},
            "home": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/place"}]},
        },
        "required": ["name", "age"],
        "$defs": {"place": {"type": "object", "properties": {"zip": {"pattern": "^[0-9]{5}$"}}}},
    }
    for kind in COMPLETE_KINDS:
        assert check_schema(person, 1, kind) == "finished"
        assert check_schema({"type": "string", "pattern": "^[é日]{2}$"}, 2, kind) == "finished"
        assert check_schema(True, 3, kind) in ("finished", "cut")


# --- patterns

CHARACTERS = st.sampled_from(list('abkz09_ -.\\"é日ſ') + ["\U0001f600", "\n", "\u2028", "\x85"])
CATEGORIES = st.sampled_from([r"\d", r"\D", r"\w", r"\W", r"\s", r"\S", "."])


@st.composite
def sets(draw) -> str:
    items = draw(
        st.lists(
            st.one_of(
                CHARACTERS.map(re.escape),
                CATEGORIES.filter(lambda c: c != "."),
                st.sampled_from(["a-f", "0-9", "à-ý", "&", "~", "k-s"]),
            ),
            min_size=1,
            max_size=3,
        )
    )
    return f"[{draw(st.sampled_from(['', '', '^']))}{''.join(items)}]"


def larger(inner) -> Any:
    repeats = st.sampled_from(["*", "+", "?", "*?", "{2}", "{1,3}", "{,2}", "{0,1}?"])
    return st.one_of(
        st.lists(inner, min_size=2, max_size=3).map("".join),
        st.lists(inner, min_size=2, max_size=3).map(lambda parts: f"(?:{'|'.join(parts)})"),
        st.builds(lambda part, often: f"(?:{part}){often}", inner, repeats),
        inner.map(lambda part: f"({part})"),
        inner.map(lambda part: f"(?i:{part})"),
        inner.map(lambda part: f"(?s:{part})"),
        inner.map(lambda part: f"(?P<n>{part})"),
        inner.map(lambda part: f"(?:^{part}$)"),
        inner.map(lambda part: f"(?!{part})"),
    )


REGEXES = st.recursive(
    st.one_of(CHARACTERS.map(re.escape), CATEGORIES, sets()), larger, max_leaves=8
)


def is_pattern(pattern: str) -> bool:
    try:
        re.compile(pattern)
    except re.error:
        return False
    return True


def check_pattern(pattern: str, seed: int, kind: str) -> str:
    try:
        compiled = compile_constraint(Regex(pattern), vocabulary_of(kind))
    except ConfigError as error:
        assert "--regex" in str(error)
        return "refused"
    rng = np.random.default_rng(seed)
    ends = Counter()
    for forced in (False, False, True, True):
        made = random_text(compiled, rng, kind=kind, forced=forced, most=60)
        ends[made.finished] += 1
        if made.finished:
            assert re.fullmatch(pattern, made.text), (pattern, made.text)
    return "finished" if ends[True] else "cut"


@given(
    pattern=REGEXES.filter(is_pattern),
    seed=st.integers(0, 2**32 - 1),
    kind=st.sampled_from(COMPLETE_KINDS),
)
@settings(max_examples=20, **CAMPAIGN)
def test_finished_texts_match(pattern, seed, kind):
    check_pattern(pattern, seed, kind)


@pytest.mark.slow
@given(
    pattern=REGEXES.filter(is_pattern),
    seed=st.integers(0, 2**32 - 1),
    kind=st.sampled_from(COMPLETE_KINDS),
)
@settings(max_examples=300, **CAMPAIGN)
def test_three_hundred_patterns(pattern, seed, kind):
    check_pattern(pattern, seed, kind)


@pytest.mark.parametrize(
    "pattern",
    [
        r"\d{3}-\d{4}",
        r"[\w.]{1,6}@\w{2,6}\.(?:com|org)",
        "^(?:yes|no)$",
        "a*?",
        "(?i)straße",
        r"[^\W\d_]+",
        "a{,2}b",
        r"\x41é\u65e5\Z",
        r"[a&\-b[]+",
        "(?x) a b  # both",
        r"\<b\>",
    ],
)
def test_usual_patterns_are_taken_and_match(pattern):
    for kind in COMPLETE_KINDS:
        assert check_pattern(pattern, 1, kind) == "finished"


@pytest.mark.parametrize("pattern", [r"\w", r"\W", r"\s", r"\S", r"\d", r"\D", ".", r"[^\w]"])
def test_classes_have_no_character_that_python_does_not_have(pattern):
    """Characters one by one: every one below U+3100, and some of the others."""
    vocabulary = vocabulary_of("byte-level")
    start = compile_constraint(Regex(pattern), vocabulary).start
    for code in [*range(0x3100), *range(0x3100, 0xD800, 61), *range(0xE000, 0x20000, 61)]:
        text = chr(code)
        if re.fullmatch(pattern, text):
            continue
        ids = vocabulary._encode(text.encode())
        assert start.validate_tokens(ids) < len(ids), hex(code)
