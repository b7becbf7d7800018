"""Whether a recursive JSON schema has a value that ends."""

from __future__ import annotations

from typing import Any

from llm_jax.types import ConfigError

_MOST_REFERENCES = 10_000


def is_endless(schema: Any) -> bool:
    """Whether each value of a schema holds another one of the same kind, and so on.

    Only what must be there counts: required properties, the least number of items, and one
    alternative. What llguidance calls unsatisfiable is not looked for.
    """
    return _Search(schema).endless(schema, frozenset())


class _Search:
    def __init__(self, root: Any) -> None:
        self._root = root
        self._references = 0

    def endless(self, schema: Any, within: frozenset[str]) -> bool:
        """``is_endless`` of a subschema.

        Args:
            schema: the subschema.
            within: references that it is reached through.
        """
        if not isinstance(schema, dict):
            return False
        if self._refers_to_endless(schema.get("$ref"), within):
            return True
        if any(self.endless(part, within) for part in _listed(schema, "allOf")):
            return True
        for keyword in ("anyOf", "oneOf"):
            alternatives = _listed(schema, keyword)
            if alternatives and all(self.endless(part, within) for part in alternatives):
                return True
        return not _has_other_types(schema) and self._needs_endless(schema, within)

    def _needs_endless(self, schema: dict[str, Any], within: frozenset[str]) -> bool:
        """Whether a part that the schema's objects or arrays need is endless."""
        if schema.get("type") in ("object", ["object"]):
            properties = schema.get("properties")
            named = properties if isinstance(properties, dict) else {}
            required = [named.get(name) for name in _listed(schema, "required") if name in named]
            return any(self.endless(part, within) for part in required)
        least = schema.get("minItems")
        count = least if isinstance(least, int) else 0
        first = _listed(schema, "prefixItems") or _listed(schema, "items")
        needed = first[:count]
        if count > len(first):
            after = schema.get("items")
            needed = [*needed, after]
        return any(self.endless(part, within) for part in needed)

    def _refers_to_endless(self, reference: Any, within: frozenset[str]) -> bool:
        if not isinstance(reference, str):
            return False
        if reference in within:
            return True
        self._references += 1
        if self._references > _MOST_REFERENCES:
            raise ConfigError(
                "JSON schema (--json-schema) refers to itself in too many ways to be checked; use"
                " fewer references ($ref)"
            )
        return self.endless(self._target(reference), within | {reference})

    def _target(self, reference: str) -> Any:
        """The schema of a reference inside of the root; True for any other reference."""
        if reference != "#" and not reference.startswith("#/"):
            return True
        value = self._root
        for step in reference.split("/")[1:]:
            key = step.replace("~1", "/").replace("~0", "~")
            if isinstance(value, list) and key.isdigit() and int(key) < len(value):
                value = value[int(key)]
            elif isinstance(value, dict) and key in value:
                value = value[key]
            else:
                return True
        return value


def _has_other_types(schema: dict[str, Any]) -> bool:
    """Whether a value may be neither an object nor an array."""
    return schema.get("type") not in ("object", "array", ["object"], ["array"])


def _listed(schema: dict[str, Any], keyword: str) -> list[Any]:
    value = schema.get(keyword)
    return value if isinstance(value, list) else []
