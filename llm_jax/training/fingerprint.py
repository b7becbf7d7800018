"""What all hosts of a run must have in common, as short texts to compare."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import jax

import llm_jax
from llm_jax.config import Config
from llm_jax.config.sections import flatten
from llm_jax.storage.paths import path_of
from llm_jax.training.environment import versions
from llm_jax.training.step import abstract_batch


def start_facts(config: Config, tokenizer: str) -> dict[str, Any]:
    """Code, versions, config, tokenizer and data, compared before anything is built.

    The folders of the data may differ between hosts, their content may not.
    """
    from llm_jax.data.shards.store import MANIFEST

    folders = [path_of(path) for path in config.data.path]
    return {
        "code": code_hash(Path(llm_jax.__file__).parent),
        "versions": json.dumps(versions()),
        **{f"config {k}": repr(v) for k, v in flatten(config).items() if k != "data.path"},
        "tokenizer": tokenizer[:16],
        **{
            f"data {i}": _short((folder / MANIFEST).read_bytes())
            for i, folder in enumerate(folders)
        },
    }


def program_facts(
    step: Any, abstract: Any, mesh: jax.sharding.Mesh, config: Config, first: int
) -> dict[str, Any]:
    """The first step and the program to be compiled, compared before the first step.

    Args:
        step: the jitted train step.
        abstract: shapes and shardings of its state.
        mesh: of the run.
        config: of the run.
        first: the step that the run starts from.
    """
    with jax.set_mesh(mesh):
        text = step.lower(abstract, abstract_batch(config)).as_text()
    return {"step": first, "program": _short(text.encode())}


def code_hash(package: Path) -> str:
    """A hash of the package's source files and their names."""
    files = sorted(package.rglob("*.py"))
    return _short(
        b"".join(str(f.relative_to(package)).encode() + b"\0" + f.read_bytes() for f in files)
    )


def _short(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
