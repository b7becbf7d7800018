"""The subschemas of a JSON schema: which values of it are schemas, and where they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

# Keywords whose value is a schema, a list of schemas, or schemas by name.
ONE = (
    "additionalItems",
    "additionalProperties",
    "contains",
    "contentSchema",
    "else",
    "if",
    "items",
    "not",
    "propertyNames",
    "then",
    "unevaluatedItems",
    "unevaluatedProperties",
)
LISTS = ("allOf", "anyOf", "items", "oneOf", "prefixItems")
NAMED = (
    "$defs",
    "definitions",
    "dependencies",
    "dependentSchemas",
    "patternProperties",
    "properties",
)


class SchemaPlace(NamedTuple):
    """A subschema.

    Attributes:
        path: JSON pointer, as ``#/properties/a``.
        schema: its value.
    """

    path: str
    schema: Any


def subschemas(schema: Any, path: str = "#") -> Iterator[SchemaPlace]:
    """A schema and all schemas in it."""
    yield SchemaPlace(path, schema)
    if isinstance(schema, dict):
        for steps, inner in _inside(schema):
            yield from subschemas(inner, "/".join((path, *map(_escaped, steps))))


def mapped(schema: Any, change: Callable[[SchemaPlace], Any], path: str = "#") -> Any:
    """A schema in which every subschema is what ``change`` makes of it. ``change`` gets a subschema
    whose own subschemas are changed already, and does not change them.
    """
    if not isinstance(schema, dict):
        return change(SchemaPlace(path, schema))
    made = dict(schema)
    for steps, inner in _inside(schema):
        new = mapped(inner, change, "/".join((path, *map(_escaped, steps))))
        if len(steps) == 1:
            made[steps[0]] = new
            continue
        keyword, key = steps
        if made[keyword] is schema[keyword]:
            made[keyword] = schema[keyword].copy()
        made[keyword][int(key) if isinstance(made[keyword], list) else key] = new
    return change(SchemaPlace(path, made))


def _inside(schema: dict[str, Any]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The keys that lead to each schema directly inside of one, and that schema."""
    for keyword, value in schema.items():
        if keyword in LISTS and isinstance(value, list):
            yield from (((keyword, str(place)), inner) for place, inner in enumerate(value))
        elif keyword in NAMED and isinstance(value, dict):
            named = value.items()
            yield from (((keyword, name), inner) for name, inner in named if _is_schema(inner))
        elif keyword in ONE:
            yield (keyword,), value


def _is_schema(value: Any) -> bool:
    """False for the list of names that ``dependencies`` may have."""
    return not isinstance(value, list)


def _escaped(step: str) -> str:
    return step.replace("~", "~0").replace("/", "~1")
