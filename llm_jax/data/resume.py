"""Beginning, going on with, or refusing an output folder of ``prepare``."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from llm_jax.data.shards import FORMAT_VERSION, MANIFEST, json_bytes, read_manifest
from llm_jax.data.tokenizer import Tokenizer
from llm_jax.files import SHARDS, check_folder, make_folder, visible_names, write_atomic
from llm_jax.progress import note
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
    tokens = {"fingerprint": tokenizer.fingerprint, "vocab_size": tokenizer.vocab_size, "special_ids": special}
    return {"format_version": FORMAT_VERSION, "tokenizer": tokens, "options": options, "sources": sources}


def start(out: Path, plan: dict[str, Any], overwrite: bool) -> dict[str, Any] | None:
    """Make ``out`` ready: None to go on (or begin), the manifest if all is done already."""
    check_folder(out, resumes=(SHARDS,))
    make_folder(out)
    if overwrite:
        _clear(out)
    elif (out / MANIFEST).exists():
        manifest = read_manifest(out)
        _same(out, {key: manifest[key] if key != "sources" else _identity(manifest["sources"]) for key in plan}, plan)
        return manifest
    elif (out / PLAN).exists():
        _same(out, json.loads((out / PLAN).read_text(encoding="utf-8")), plan)
        finished = len(list((out / "parts").glob("*.json")))
        note(f"{out}: going on after {finished} finished shards")
    (out / "parts").mkdir(exist_ok=True)
    write_atomic(out / PLAN, json_bytes(plan))
    return None


def _clear(out: Path) -> None:
    """Delete what a run of this module wrote, and nothing else. Raises DataError, and deletes nothing, where there is more."""
    known = [MANIFEST, PLAN, "dataset_info.json", "features.json"]
    files = [*(out / name for name in known), *out.glob("tokens-*.array_record-*"), *out.glob(".*.tmp")]
    folders = [out / "parts", out / "tokenizer"]
    if rest := sorted({out / name for name in visible_names(out)} - {*files, *folders}):
        names = ", ".join(path.name for path in rest[:5])
        raise DataError(f"out {str(out)!r} holds files that data prepare did not write ({names}); choose another folder, or move them")
    for path in files:
        path.unlink(missing_ok=True)
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


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
            f"tokenizer: {old['tokenizer']['fingerprint'][:12]} there, {new['tokenizer']['fingerprint'][:12]} now"
        )
    if old["sources"] != new["sources"]:
        there, now = ({s["path"]: s for s in plan["sources"]} for plan in (old, new))
        names = sorted(p for p in {*there, *now} if there.get(p) != now.get(p)) or ["their order"]
        changed.append(f"sources: {', '.join(names[:3])}{' …' if len(names) > 3 else ''} differ")
    if changed or old != new:
        raise DataError(
            f"out {str(out)!r} was begun with something else ({'; '.join(changed)}); pass overwrite (--overwrite) "
            "or another out"
        )
