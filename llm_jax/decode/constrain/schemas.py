"""JSON schemas as llguidance reads them: checked, with patterns in its syntax.

What llguidance would read otherwise than the drafts say is refused here by name; what it refuses
itself is named by ``refusal``, with its place in the schema.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple
from urllib.parse import unquote

from llm_jax.decode.constrain.endless import is_endless
from llm_jax.decode.constrain.places import SchemaPlace, mapped, subschemas
from llm_jax.decode.constrain.regexes import Translation
from llm_jax.types import ConfigError

NAME = "JSON schema (--json-schema)"
# Keywords that fix a value or a name, which is written as it is.
_LITERALS = ("const", "enum", "required")
_FIXES = {
    "not": "say what is allowed instead",
    "oneOf": "use anyOf, or alternatives of different types or with a const each",
    "if": "use anyOf with one alternative for each case",
    "then": "use anyOf with one alternative for each case",
    "else": "use anyOf with one alternative for each case",
    "dependentRequired": "use anyOf with one alternative for each case",
    "dependentSchemas": "use anyOf with one alternative for each case",
    "dependencies": "use anyOf with one alternative for each case",
    "unevaluatedProperties": "use additionalProperties",
    "unevaluatedItems": "use items after prefixItems",
    "minProperties": "list the keys in properties and make as many of them required",
    "maxProperties": "list the keys in properties and make as many of them required",
    "propertyNames": "use patternProperties with additionalProperties false",
    "$dynamicRef": "use $ref",
    "$recursiveRef": "use $ref",
}
_CHECK_AFTERWARDS = "remove it, and check the finished text for it"


def options(whitespace: int) -> dict[str, Any]:
    """How llguidance writes JSON, each of its options given.

    Args:
        whitespace: as of ``JsonSchema``.
    """
    return {
        "item_separator": ",",
        "key_separator": ":",
        "whitespace_flexible": whitespace > 0,
        "whitespace_pattern": rf"[\x20\x0A\x0D\x09]{{0,{whitespace}}}" if whitespace else None,
        "coerce_one_of": False,
        "lenient": False,
        # Not \u: a key written with it passes patterns and names that would refuse the character.
        "json_allowed_escapes": '\\"nrtbf',
        "json_allow_general_unicode_escapes": False,
    }


def prepared(schema: Any) -> dict[str, Any]:
    """A schema with its patterns in Rust's syntax.

    Args:
        schema: the value of a schema, as ``constraints.schema_value`` gives it.

    Returns:
        A new object.

    Raises:
        ConfigError: the schema has something that cannot be honoured; names it and its place.
    """
    if schema is False:
        raise ConfigError(f"{NAME} is false, which no JSON satisfies; say what is allowed")
    if schema is True:
        return {}
    draft = _draft(schema)
    places = list(subschemas(schema))
    paths = {place.path for place in places}
    for place in places:
        _check(place, draft)
        _check_reference(place, paths)
    if is_endless(schema):
        raise ConfigError(
            f"{NAME}: no finite JSON satisfies it, since each value needs another of its kind"
            " inside; make a recursive property optional"
        )
    return mapped(schema, _with_patterns)


def refusal(schema: Any, message: str) -> ConfigError:
    """llguidance's refusal of a schema, with the keyword, its place and the fix.

    Args:
        schema: the schema.
        message: what llguidance says.
    """
    first = message.split("\n", 1)[0].strip()
    for keyword, value in _refused(first):
        for place in subschemas(schema):
            has = isinstance(place.schema, dict) and keyword in place.schema
            if has and value in (None, place.schema[keyword]):
                fix = _FIXES.get(keyword, _CHECK_AFTERWARDS)
                shown = json.dumps(place.schema[keyword])[:80]
                return ConfigError(
                    f"{NAME} has {keyword} {shown} at {place.path}, which constrained decoding"
                    f" does not support here; {fix}"
                )
    if first.startswith("Unsatisfiable schema"):
        why = first.partition(":")[2].strip()
        return ConfigError(f"{NAME}: no JSON satisfies it ({why[:200]}); fix the schema")
    return ConfigError(f"{NAME} cannot be used: {first[:300]}; fix the schema")


def _refused(message: str) -> Iterator[tuple[str, Any]]:
    """Keywords that a message of llguidance is about, each with its value or None."""
    keys = re.match(r"Unimplemented keys: (\[.*\])", message)
    if keys:
        yield from ((key, None) for key in json.loads(keys[1]))
    if message.startswith("oneOf"):
        yield "oneOf", None
    if message.startswith("min/maxProperties"):
        yield "minProperties", None
        yield "maxProperties", None
    if message.startswith("Unknown format: "):
        yield "format", message.removeprefix("Unknown format: ")


class _Draft(NamedTuple):
    """Which version of JSON Schema a schema is written in.

    Attributes:
        name: as ``$schema`` has it; empty without one, which means the newest.
        tuples: whether ``items`` may be a list; otherwise ``prefixItems`` is.
    """

    name: str
    tuples: bool


def _draft(schema: Any) -> _Draft:
    name = schema.get("$schema", "") if isinstance(schema, dict) else ""
    older = re.search(r"draft-0[467]|2019-09", str(name))
    return _Draft(str(name), bool(older))


def _check(place: SchemaPlace, draft: _Draft) -> None:
    """Raises ConfigError for what llguidance would not read as the drafts do."""
    schema = place.schema
    if isinstance(schema, bool):
        return
    if not isinstance(schema, dict):
        raise ConfigError(
            f"{NAME} has {json.dumps(schema)[:80]} at {place.path}; it must be an object or a"
            " boolean"
        )
    if "x-guidance" in schema:
        raise ConfigError(
            f"{NAME} has x-guidance at {place.path}, which would change how JSON is written;"
            " remove it, and set whitespace (--json-whitespace)"
        )
    listed = "items" if isinstance(schema.get("items"), list) else ""
    tuples = {"items": draft.tuples, "prefixItems": not draft.tuples, "": True}
    keyword = listed or ("prefixItems" if "prefixItems" in schema else "")
    if not tuples[keyword]:
        version = draft.name or "2020-12, which a schema without $schema has"
        raise ConfigError(
            f"{NAME} has a list in {keyword} at {place.path}, and JSON Schema {version} has it in"
            f" {'prefixItems' if listed else 'items'}; rename it, or set $schema"
        )
    _check_characters(place)
    _check_keys(place)


def _check_keys(place: SchemaPlace) -> None:
    """Raises ConfigError for a number of properties that a repeated key would reach."""
    schema = place.schema
    least = schema.get("minProperties", 0)
    only_named = schema.get("additionalProperties") is False and not schema.get("patternProperties")
    if only_named or isinstance(least, bool) or not isinstance(least, int | float):
        return
    if least > 1:
        raise ConfigError(
            f"{NAME} has minProperties {least} at {place.path}, and a key that is not in properties"
            f" may come twice; {_FIXES['minProperties']}"
        )


def _check_reference(place: SchemaPlace, paths: set[str]) -> None:
    """Raises ConfigError for a reference to what is not read as a schema."""
    reference = place.schema.get("$ref") if isinstance(place.schema, dict) else None
    if not isinstance(reference, str) or not reference.startswith("#/"):
        return
    if unquote(reference) not in paths:
        raise ConfigError(
            f"{NAME} has $ref {reference[:80]!r} at {place.path}, and no schema is there; put the"
            " schema into $defs of the whole"
        )


def _check_characters(place: SchemaPlace) -> None:
    literals = [place.schema[key] for key in _LITERALS if key in place.schema]
    literals += list(place.schema.get("properties") or ())
    for text in _strings(literals):
        control = re.search(r"[\x00-\x07\x0b\x0e-\x1f\x7f]|[\ud800-\udfff]", text)
        if control:
            raise ConfigError(
                f"{NAME} has {text[:80]!r} at {place.path}, whose character"
                f" U+{ord(control[0]):04X} constrained decoding does not write; remove it"
            )


def _strings(value: Any) -> Iterator[str]:
    """All strings and keys of a JSON value."""
    if isinstance(value, str):
        yield value
    if isinstance(value, dict):
        yield from value
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _strings(item)


def _with_patterns(place: SchemaPlace) -> Any:
    """A subschema with its own patterns in Rust's syntax."""
    schema = place.schema
    if not isinstance(schema, dict):
        return schema
    made = dict(schema)
    if isinstance(schema.get("pattern"), str):
        made["pattern"] = _pattern(schema["pattern"], place, "pattern")
    named = schema.get("patternProperties")
    if isinstance(named, dict):
        translated = {_pattern(key, place, "patternProperties"): key for key in named}
        if len(translated) < len(named):
            raise ConfigError(
                f"{NAME} has two equal patterns in patternProperties at {place.path}; join their"
                " schemas with allOf"
            )
        made["patternProperties"] = {new: named[old] for new, old in translated.items()}
    return made


def _pattern(pattern: str, place: SchemaPlace, keyword: str) -> str:
    name = f"{NAME}: {keyword} at {place.path}"
    return Translation(pattern, name, whole=False).text
