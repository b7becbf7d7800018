"""Beginning, going on with, or refusing an output folder of ``prepare``."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from llm_jax.data.shards.store import FORMAT_VERSION, MANIFEST, json_bytes, read_manifest
from llm_jax.files import SHARDS, check_folder, make_folder, write_atomic
from llm_jax.progress import note
from llm_jax.tokenizers.tokenizer import Tokenizer
from llm_jax.types import DataError

PLAN = "plan.json"


def make_plan(options: dict[str, Any], paths: list[Path], tokenizer: Tokenizer) -> dict[str, Any]:
    """What the result is a function of: two runs with equal plans write equal files."""
    sources = []
    for path in paths:
        try:
            with path.open("rb") as file:
                sources.append(
                    {
                        "path": str(path),
                        "bytes": path.stat().st_size,
                        "sha256": hashlib.file_digest(file, "sha256").hexdigest(),
                    }
                )
        except OSError as error:
            raise DataError(f"input {str(path)!r}: cannot be read ({error.strerror})") from error
    special = {name: getattr(tokenizer, f"{name}_id") for name in ("pad", "unk", "bos", "eos")}
    tokens = {
        "fingerprint": tokenizer.fingerprint,
        "vocab_size": tokenizer.vocab_size,
        "special_ids": special,
    }
    return {
        "format_version": FORMAT_VERSION,
        "tokenizer": tokens,
        "options": options,
        "sources": sources,
    }


def start(out: Path, plan: dict[str, Any], overwrite: bool) -> dict[str, Any] | None:
    """Make ``out`` ready: None to go on (or begin), the manifest if all is done already."""
    check_folder(out, resumes=() if overwrite else (SHARDS,), replaces=SHARDS, overwrite=overwrite)
    make_folder(out)
    if overwrite:
        _clear(out)
    elif (out / MANIFEST).exists():
        manifest = read_manifest(out)
        _same(
            out,
            {
                key: manifest[key] if key != "sources" else _identity(manifest["sources"])
                for key in plan
            },
            plan,
        )
        return manifest
    elif (out / PLAN).exists():
        _same(out, _read_plan(out), plan)
        finished = len(list((out / "parts").glob("*.json")))
        note(f"{out}: going on after {finished} finished shards")
    # First, since the plan is what shows whose folder this is.
    write_atomic(out / PLAN, json_bytes(plan))
    (out / "parts").mkdir(exist_ok=True)
    return None


def _clear(out: Path) -> None:
    """Delete what a run of this module wrote; last what shows whose folder it is, so that a
    deletion cut short can go on.
    """
    for folder in ("parts", "tokenizer"):
        shutil.rmtree(out / folder, ignore_errors=True)
    last = [out / MANIFEST, out / PLAN]
    for pattern in (*SHARDS.files, ".*.tmp"):
        for path in out.glob(pattern):
            if path not in last:
                path.unlink()
    for path in last:
        path.unlink(missing_ok=True)


def _read_plan(out: Path) -> dict[str, Any]:
    path = out / PLAN
    try:
        plan = json.loads(path.read_text(encoding="utf-8"))
        plan["options"], plan["tokenizer"]["fingerprint"], plan["sources"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(
            f"{str(path)!r} is damaged ({error}); pass overwrite (--overwrite) to begin anew"
        ) from error
    return plan


def _identity(sources: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: source[key] for key in ("path", "bytes", "sha256")} for source in sources]


def _same(out: Path, old: dict[str, Any], new: dict[str, Any]) -> None:
    changed = [
        f"{k}: {old['options'].get(k)!r} there, {new['options'].get(k)!r} now"
        for k in {**old["options"], **new["options"]}
        if old["options"].get(k) != new["options"].get(k)
    ]
    if old["tokenizer"] != new["tokenizer"]:
        changed.append(
            f"tokenizer: {old['tokenizer']['fingerprint'][:12]} there,"
            f" {new['tokenizer']['fingerprint'][:12]} now"
        )
    if old["sources"] != new["sources"]:
        there, now = ({s["path"]: s for s in plan["sources"]} for plan in (old, new))
        names = sorted(p for p in {*there, *now} if there.get(p) != now.get(p)) or ["their order"]
        changed.append(f"sources: {', '.join(names[:3])}{' …' if len(names) > 3 else ''} differ")
    if changed or old != new:
        raise DataError(
            f"out {str(out)!r} was begun with something else ({'; '.join(changed)}); pass overwrite"
            " (--overwrite) or another out"
        )
