"""Manifests beside the published schema of JobSet, Job and Pod, in schemas/jobset.yaml."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

JOBSET = yaml.safe_load((Path(__file__).parent / "schemas" / "jobset.yaml").read_text())
TYPES = {"string": str, "integer": int, "boolean": bool, "array": list, "object": dict}


def faults(value: Any, schema: dict[str, Any] = JOBSET, where: str = "") -> Iterator[str]:
    """What an API server says with strict validation: unknown and missing fields, wrong types and
    values.
    """
    if schema.get("x-kubernetes-int-or-string"):
        fits = type(value) in (int, str)
        wanted = "integer or string"
    else:
        wanted = schema["type"]
        fits = type(value) is TYPES[wanted]
    if not fits:
        yield f"{where}: {value!r} is not of type {wanted}"
    elif isinstance(value, dict):
        yield from _of_fields(value, schema, where)
    elif isinstance(value, list):
        yield from _of_items(value, schema, where)
    elif not _allowed(value, schema):
        yield f"{where}: {value!r} is not allowed"


def _allowed(value: Any, schema: dict[str, Any]) -> bool:
    if value not in schema.get("enum", [value]):
        return False
    if isinstance(value, str):
        return re.search(schema.get("pattern", ""), value) is not None
    return value >= schema.get("minimum", value)


def _of_items(value: list, schema: dict[str, Any], where: str) -> Iterator[str]:
    if len(value) > schema.get("maxItems", len(value)):
        yield f"{where}: more than {schema['maxItems']} items"
    for i, item in enumerate(value):
        yield from faults(item, schema["items"], f"{where}[{i}]")


def _of_fields(value: dict, schema: dict[str, Any], where: str) -> Iterator[str]:
    for name in schema.get("required", []):
        if name not in value:
            yield f"{where}.{name} is missing"
    fields = schema.get("properties", {})
    others = schema.get("additionalProperties")
    for name, item in value.items():
        wanted = fields.get(name, others)
        if wanted is not None:
            yield from faults(item, wanted, f"{where}.{name}")
        elif fields:
            yield f"{where}.{name} is unknown"
