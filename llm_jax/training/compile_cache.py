"""The persistent compilation cache, on by default: a second start of a run loads its compiled
programs.

jax's own settings win: JAX_COMPILATION_CACHE_DIR names another folder,
JAX_ENABLE_COMPILATION_CACHE=false turns it off. Of several hosts the first writes, all read; a
folder that they share saves each its compiling.
"""

from __future__ import annotations

import hashlib
import os
import platform
from collections import Counter
from pathlib import Path

import jax
from jax import monitoring

_EVENTS = {
    "/jax/compilation_cache/compile_requests_use_cache": "wanted",
    "/jax/compilation_cache/cache_hits": "found",
}


_events: Counter[str] = Counter()


def _heard(event: str, **_: object) -> None:
    if event in _EVENTS:
        _events[_EVENTS[event]] += 1


monitoring.register_event_listener(_heard)


def use_compile_cache() -> None:
    """Turns the cache on in the default folder, unless the environment says otherwise; call it
    before anything is compiled.
    """
    if jax.config.jax_enable_compilation_cache and not jax.config.jax_compilation_cache_dir:
        jax.config.update("jax_compilation_cache_dir", str(default_folder()))


def cache_counts() -> dict[str, int]:
    """Programs of this process loaded from the cache, and programs compiled though it was on."""
    return {
        "programs_loaded": _events["found"],
        "programs_compiled": _events["wanted"] - _events["found"],
    }


def default_folder() -> Path:
    """``llm_jax/compiled/PROCESSOR`` under the user's cache directory.

    A folder for each kind of processor, since a home directory may be shared by several: what was
    compiled for one kind can stop another with an illegal instruction, and jax's key does not tell
    them apart.
    """
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "llm_jax" / "compiled" / _processor()


def _processor() -> str:
    """Machine and a hash of the processor's features."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else [platform.processor()]
    features = (
        sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))})
        or lines[:1]
    )
    return f"{platform.machine()}-{hashlib.sha256(''.join(features).encode()).hexdigest()[:12]}"
