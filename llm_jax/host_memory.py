"""The host's memory: what a CPU train step frees is kept for the next step, and memory that is not
there is an error that says for what.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llm_jax.types import ConfigError

# malloc.h: parameters of mallopt, and the values that keep memory.
_ARENA_MAX, _MMAP_MAX, _TRIM_THRESHOLD = -8, -4, -1
_SETTINGS = ((_ARENA_MAX, 1), (_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1))
_ACCELERATORS = ("/dev/nvidiactl", "/dev/kfd", "/dev/accel0", "/dev/vfio")
_CONTAINER_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
_kept = False


def keep_freed_memory() -> bool:
    """Has the C library keep what is freed, so that no step waits for the system to hand its memory
    out again.

    XLA's CPU client allocates the temporaries of a step anew for each call, and glibc returns
    blocks that large to the system when they are freed: every step then faults in and clears every
    page once more (a third of a small model's step). The price is that the process holds its peak
    memory, or a few times a step's temporaries where steps overlap: see ``give_back_if_tight``. The
    settings are those of ``man 3 mallopt``; threads choose their arena when they start, so call
    this before the first use of JAX.

    Returns False, with nothing changed, when that is too late (jax is imported), when this machine
    has an accelerator and JAX_PLATFORMS does not say cpu (the host's memory is then not what a step
    waits for), or when the C library is not glibc.
    """
    global _kept
    if "jax" in sys.modules or not sys.platform.startswith("linux"):
        return False
    if os.environ.get("JAX_PLATFORMS") != "cpu" and any(map(os.path.exists, _ACCELERATORS)):
        return False
    library = ctypes.CDLL(None)
    # musl has no mallopt.
    if not hasattr(library, "mallopt"):
        return False
    _kept = all(library.mallopt(name, value) == 1 for name, value in _SETTINGS)
    return _kept


def give_back_if_tight(share: float = 0.5) -> None:
    """Returns the free part of kept memory to the system when this process holds over ``share`` of
    what it may have.

    The training loop calls it as it logs; where live memory alone is over the share, steps pay for
    their pages as if nothing was kept.
    """
    if (
        _kept
        and int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        > share * memory_limit()
    ):
        ctypes.CDLL(None).malloc_trim(0)


# What XLA says where a device has not enough memory; its class has another name in each version of
# jax.
_EXHAUSTED = ("RESOURCE_EXHAUSTED", "Out of memory", "out of memory")


@contextmanager
def allocating(what: str, remedy: str) -> Iterator[None]:
    """Inside, memory that cannot be had, of the host or of a device, raises ConfigError with what
    it was for and what to do.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        said = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, RuntimeError) and not any(mark in said for mark in _EXHAUSTED):
            raise
        raise ConfigError(
            f"there is not enough memory for {what} ({said[:200]}); {remedy}"
        ) from error


@functools.cache
def memory_limit() -> int:
    """Bytes this process may have: the machine's memory, or its container's (cgroup v2 or v1) where
    that is less.
    """
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for path in map(Path, _CONTAINER_LIMITS):
        if path.exists() and (text := path.read_text().strip()).isdigit():
            limits.append(int(text))
    return min(limits)
