"""Settings of earlier versions, in saved configs: each is read as what it means today."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llm_jax.config.run import OptimizerConfig

# Its names were matched against the last name of a path, and both lists had to cover everything.
_OLD_DECAY = ("kernel", "embedding")


def translate(values: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys and values of a saved config with those of today in the place of old ones."""
    out = dict(values)
    out.pop("optimizer.no_decay", None)
    if "optimizer.decay" in out:
        out["optimizer.decay"] = _decay(out["optimizer.decay"])
    return out


def _decay(patterns: Any) -> Any:
    if not isinstance(patterns, list | tuple):
        return patterns
    if tuple(patterns) == _OLD_DECAY:
        return OptimizerConfig().decay
    return tuple(p if ":" in p or "/" in p else f"*/{p}" for p in patterns)
