"""Starting, resuming or refusing an output folder of ``prepare``."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from llm_jax.data.prepare.units import PARTS
from llm_jax.data.shards.store import FORMAT_VERSION, MANIFEST, json_bytes, read_manifest
from llm_jax.files import SHARDS, check_folder, make_folder, remove_tree, write_atomic
from llm_jax.progress import note
from llm_jax.tokenizers.tokenizer import Tokenizer
from llm_jax.types import DataError

PLAN = "plan.json"


def make_plan(options: dict[str, Any], paths: list[Path], tokenizer: Tokenizer) -> dict[str, Any]:
    """The inputs that the output is a function of: runs with equal plans write equal files.

    Args:
        options: as ``PrepareOptions.recorded`` returns them.
        paths: all source files; each is read once, for its hash.
        tokenizer: the tokenizer in use.

    Raises:
        DataError: a file cannot be read.
    """
    special = {name: getattr(tokenizer, f"{name}_id") for name in ("pad", "unk", "bos", "eos")}
    return {
        "format_version": FORMAT_VERSION,
        "tokenizer": {
            "fingerprint": tokenizer.fingerprint,
            "vocab_size": tokenizer.vocab_size,
            "special_ids": special,
        },
        "options": options,
        "sources": [_source(path) for path in paths],
    }


def _source(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            return {
                "path": str(path),
                "bytes": path.stat().st_size,
                "sha256": hashlib.file_digest(file, "sha256").hexdigest(),
            }
    except OSError as error:
        raise DataError(f"input {str(path)!r}: cannot be read ({error.strerror})") from error


def start(out: Path, plan: dict[str, Any], overwrite: bool) -> dict[str, Any] | None:
    """Make the output folder ready.

    Args:
        out: the folder; made if it does not exist.
        plan: of this run.
        overwrite: delete the files of a run with another plan.

    Returns:
        None to start or resume; the manifest where the folder is complete.

    Raises:
        DataError: the folder holds other files, or a run with another plan began it.
    """
    check_folder(out, resumes=() if overwrite else (SHARDS,), replaces=SHARDS, overwrite=overwrite)
    make_folder(out)
    if overwrite:
        _clear(out)
    elif (out / MANIFEST).exists():
        manifest = read_manifest(out)
        _check_same(out, _plan_of(manifest, plan), plan)
        return manifest
    elif (out / PLAN).exists():
        _check_same(out, _read_plan(out), plan)
        finished = len(list((out / PARTS).glob("*.json")))
        note(f"{out}: going on after {finished} finished shards")
    # Written first, because the plan marks the folder as one of this module.
    write_atomic(out / PLAN, json_bytes(plan))
    (out / PARTS).mkdir(exist_ok=True)
    return None


def _clear(out: Path) -> None:
    """Delete the files of an earlier run.

    The manifest and the plan, which mark the folder, are deleted last, so that a deletion that was
    interrupted can be repeated.
    """
    for folder in (PARTS, "tokenizer"):
        remove_tree(out / folder)
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


def _plan_of(manifest: dict[str, Any], plan: dict[str, Any]) -> dict[str, Any]:
    """The plan that a manifest was made by, with the keys of ``plan``."""
    sources = [
        {name: source[name] for name in ("path", "bytes", "sha256")}
        for source in manifest["sources"]
    ]
    return {**{key: manifest[key] for key in plan}, "sources": sources}


def _check_same(out: Path, old: dict[str, Any], new: dict[str, Any]) -> None:
    """Raise DataError, naming what differs, unless the plans are equal."""
    if old == new:
        return
    changed = [
        f"{name}: {old['options'].get(name)!r} there, {new['options'].get(name)!r} now"
        for name in {**old["options"], **new["options"]}
        if old["options"].get(name) != new["options"].get(name)
    ]
    if old["tokenizer"] != new["tokenizer"]:
        changed.append(
            f"tokenizer: {old['tokenizer']['fingerprint'][:12]} there,"
            f" {new['tokenizer']['fingerprint'][:12]} now"
        )
    if old["sources"] != new["sources"]:
        changed.append(_source_changes(old["sources"], new["sources"]))
    raise DataError(
        f"out {str(out)!r} was begun with something else ({'; '.join(changed)}); pass overwrite"
        " (--overwrite) or another out"
    )


def _source_changes(old: list[dict[str, Any]], new: list[dict[str, Any]]) -> str:
    there = {source["path"]: source for source in old}
    now = {source["path"]: source for source in new}
    names = sorted(path for path in {*there, *now} if there.get(path) != now.get(path))
    if not names:
        return "sources: their order differs"
    more = " …" if len(names) > 3 else ""
    return f"sources: {', '.join(names[:3])}{more} differ"
