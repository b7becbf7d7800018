"""Manifests beside the published field lists of Kubernetes and JobSet, in schemas/jobset.yaml."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

SCHEMAS = yaml.safe_load((Path(__file__).parent / "schemas" / "jobset.yaml").read_text())
QUANTITY = r"[0-9]+(\.[0-9]+)?([KMGTPE]i?|[numk])?"
TYPES = {"string": str, "integer": int, "boolean": bool}
RULES = ("one_of", "like", "each")


def faults(value: Any, schema: Any, where: str = "") -> Iterator[str]:
    """What a strict API server would say: unknown and missing fields, wrong types and values."""
    if isinstance(schema, str) and schema in SCHEMAS:
        schema = SCHEMAS[schema]
    if isinstance(schema, str):
        yield from _wrong_type(value, schema, where)
    elif isinstance(schema, list):
        if not isinstance(value, list):
            yield f"{where}: {value!r} is no list"
            return
        for i, item in enumerate(value):
            yield from faults(item, schema[0], f"{where}[{i}]")
    elif next(iter(schema)) in RULES:
        yield from _breaks_rule(value, schema, where)
    else:
        yield from _wrong_fields(value, schema, where)


def _wrong_type(value: Any, name: str, where: str) -> Iterator[str]:
    if name == "quantity":
        fits = type(value) is int or (isinstance(value, str) and re.fullmatch(QUANTITY, value))
    else:
        fits = type(value) is TYPES[name]
    if not fits:
        yield f"{where}: {value!r} is no {name}"


def _breaks_rule(value: Any, schema: dict[str, Any], where: str) -> Iterator[str]:
    [(rule, wanted)] = schema.items()
    if rule == "each":
        for key, item in value.items():
            yield from faults(item, wanted, f"{where}.{key}")
    elif rule == "one_of" and value not in wanted:
        yield f"{where}: {value!r} is not one of {wanted}"
    elif rule == "like" and not (isinstance(value, str) and re.fullmatch(wanted, value)):
        yield f"{where}: {value!r} is not like {wanted}"


def _wrong_fields(value: Any, schema: dict[str, Any], where: str) -> Iterator[str]:
    if not isinstance(value, dict):
        yield f"{where}: {value!r} is no object"
        return
    fields = {name.rstrip("!"): wanted for name, wanted in schema.items()}
    for name in schema:
        if name.endswith("!") and name[:-1] not in value:
            yield f"{where}.{name[:-1]} is missing"
    for name, item in value.items():
        if name not in fields:
            yield f"{where}.{name} is unknown"
        else:
            yield from faults(item, fields[name], f"{where}.{name}")
