"""llguidance, imported where it is used."""

from __future__ import annotations

from functools import cache
from typing import Any

from llm_jax.types import ConfigError

# Older versions do not bound white space.
OLDEST = (1, 9, 1)


@cache
def llguidance() -> Any:
    """The module ``llguidance``.

    Raises:
        ConfigError: it is not installed, or too old.
    """
    fix = "pip install -e '.[constrain]'"
    try:
        import llguidance
        import llguidance.numpy
    except ImportError as error:
        raise ConfigError(
            f"constrained decoding needs llguidance, which is not installed; {fix}"
        ) from error
    from importlib.metadata import version

    found = version("llguidance")
    numbers = tuple(int(part) for part in found.split(".")[:3] if part.isdigit())
    if numbers < OLDEST:
        wanted = ".".join(map(str, OLDEST))
        raise ConfigError(
            f"llguidance {found} does not bound white space; version {wanted} or later does: {fix}"
        )
    return llguidance
