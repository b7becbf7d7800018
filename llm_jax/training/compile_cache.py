"""The persistent compilation cache, on by default: a second start of a run loads its compiled
programs.

The environment variables of jax take precedence: JAX_COMPILATION_CACHE_DIR names another folder,
and JAX_ENABLE_COMPILATION_CACHE=false turns the cache off. The first of several hosts writes the
cache and all of them read it, so that hosts that share a folder compile once.
"""

from __future__ import annotations

import hashlib
import os
import platform
from collections import Counter
from pathlib import Path
from typing import Any

import jax
from jax import monitoring

_EVENTS = {
    "/jax/compilation_cache/compile_requests_use_cache": "wanted",
    "/jax/compilation_cache/cache_hits": "found",
}


_events: Counter[str] = Counter()


def _count(event: str, **_: object) -> None:
    if event in _EVENTS:
        _events[_EVENTS[event]] += 1


monitoring.register_event_listener(_count)


def use_compile_cache() -> None:
    """Turns the cache on in the default folder, unless jax's settings turn it off or name another.

    Call it before anything is compiled.
    """
    settings: Any = jax.config
    if settings.jax_enable_compilation_cache and not settings.jax_compilation_cache_dir:
        jax.config.update("jax_compilation_cache_dir", str(default_folder()))


def cache_counts() -> dict[str, int]:
    """How many programs this process loaded from the cache, and compiled while it was on."""
    return {
        "programs_loaded": _events["found"],
        "programs_compiled": _events["wanted"] - _events["found"],
    }


def default_folder() -> Path:
    """``llm_jax/compiled/PROCESSOR`` under the user's cache directory.

    Each kind of processor has a folder, since several may share a home directory: a program
    compiled for one kind can stop another with an illegal instruction, and jax's cache key does
    not distinguish them.
    """
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "llm_jax" / "compiled" / _processor()


def _processor() -> str:
    """Machine and a hash of the processor's features."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else [platform.processor()]
    described = {line for line in lines if line.startswith(("flags", "Features", "model name"))}
    features = sorted(described) or lines[:1]
    return f"{platform.machine()}-{hashlib.sha256(''.join(features).encode()).hexdigest()[:12]}"
