"""The host's memory: keeping freed memory for the next step, and errors where memory lacks."""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llm_jax.types import ConfigError

# Parameters of mallopt (malloc.h), and the values with which freed memory is kept.
_ARENA_MAX = -8
_MMAP_MAX = -4
_TRIM_THRESHOLD = -1
_SETTINGS = ((_ARENA_MAX, 1), (_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1))
_ACCELERATORS = ("/dev/nvidiactl", "/dev/kfd", "/dev/accel0", "/dev/vfio")
_CONTAINER_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
_kept = False


def keep_freed_memory() -> bool:
    """Makes the C library keep freed memory instead of returning it to the system.

    XLA's CPU client allocates the temporaries of a step anew for each call, and glibc returns
    blocks that large to the system when they are freed: every step then faults in and clears every
    page again (a third of a small model's step). The price is that the process holds its peak
    memory, or a few times a step's temporaries where steps overlap: see ``give_back_if_tight``.

    The settings are those of ``man 3 mallopt``. Threads choose their arena when they start, so call
    this before the first use of JAX.

    Returns:
        False, with nothing changed, where jax is already imported; where the machine has an
        accelerator and JAX_PLATFORMS is not cpu, since a step then does not wait for the host's
        memory; and where the C library is not glibc.
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
    """Returns unused kept memory to the system where the process holds over ``share`` of its limit.

    The training loop calls it when it logs. Where the memory in use alone is over the share, steps
    fault in their pages again, as if nothing were kept.
    """
    if _kept and _resident_bytes() > share * memory_limit():
        ctypes.CDLL(None).malloc_trim(0)


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


# XLA's messages where a device lacks memory; the error's class differs between versions of jax.
_EXHAUSTED = ("RESOURCE_EXHAUSTED", "Out of memory", "out of memory")


@contextmanager
def allocating(what: str, remedy: str) -> Iterator[None]:
    """Turns a lack of memory in the body, on the host or a device, into a ConfigError.

    Args:
        what: what the memory is for.
        remedy: what the user can do.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        message = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, RuntimeError) and not any(mark in message for mark in _EXHAUSTED):
            raise
        raise ConfigError(
            f"there is not enough memory for {what} ({message[:200]}); {remedy}"
        ) from error


@functools.cache
def memory_limit() -> int:
    """Bytes that this process may use: the machine's memory, or its container's limit if lower."""
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for path in map(Path, _CONTAINER_LIMITS):
        text = path.read_text().strip() if path.exists() else ""
        if text.isdigit():
            limits.append(int(text))
    return min(limits)
