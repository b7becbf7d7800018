"""Hardware and versions that a figure was measured with."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform

import jax


def environment() -> dict[str, str]:
    """Date, hardware and versions, for a result file."""
    device = jax.devices()[0]
    return {
        "date": datetime.date.today().isoformat(),
        "devices": f"{jax.device_count()} x {device.device_kind} ({device.platform})",
        "python": platform.python_version(),
        **versions(),
    }


def versions() -> dict[str, str]:
    """Versions of the packages that can change a number."""
    return {
        p: importlib.metadata.version(p)
        for p in ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint")
    }


def environment_text() -> str:
    """``environment`` on one line."""
    return ", ".join(f"{k} {v}" for k, v in environment().items())
