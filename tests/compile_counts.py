"""How many programs jax has compiled in this process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import jax

_EVENT = "/jax/core/compile/backend_compile_duration"
_counts = {"programs": 0}


def _count(event: str, _: float, **__: object) -> None:
    _counts["programs"] += event == _EVENT


jax.monitoring.register_event_duration_secs_listener(_count)


@contextmanager
def nothing_compiled() -> Iterator[None]:
    """Fails where a program is compiled, or read from a cache on disk, inside it."""
    before = _counts["programs"]
    yield
    assert _counts["programs"] == before, "a program was compiled"
