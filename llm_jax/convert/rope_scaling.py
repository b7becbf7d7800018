"""Scalings of rotary positions: ``rope_scaling`` to fields of ``ModelConfig`` and back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from llm_jax.config.model import ModelConfig
from llm_jax.config.positions import LongRopeScalingConfig
from llm_jax.config.sections import kind_of, settings
from llm_jax.convert.canonical import factors_in_use
from llm_jax.convert.keys import typed
from llm_jax.types import ConfigError

_SCALING = "positions.scaling"
ORIGINAL = "original_max_position_embeddings"
# rope_type -> (name of the scaling in ``RopeConfig``, {key: field of that scaling}).
_SCALINGS: dict[str, tuple[str, dict[str, str]]] = {
    "default": ("none", {}),
    "linear": ("linear", {"factor": "factor"}),
    "llama3": (
        "llama3",
        {
            "factor": "factor",
            ORIGINAL: "original_length",
            "low_freq_factor": "low_frequency",
            "high_freq_factor": "high_frequency",
        },
    ),
    "yarn": (
        "yarn",
        {
            "factor": "factor",
            ORIGINAL: "original_length",
            "beta_fast": "beta_fast",
            "beta_slow": "beta_slow",
            "truncate": "truncate",
            "attention_factor": "attention_factor",
        },
    ),
    "longrope": (
        "longrope",
        {
            "factor": "factor",
            ORIGINAL: "original_length",
            "attention_factor": "attention_factor",
        },
    ),
}
_WITHOUT_DEFAULT = ("factor", ORIGINAL, "low_freq_factor", "high_freq_factor")


def write_scaling(m: ModelConfig) -> dict[str, Any]:
    """The ``rope_scaling`` of a model, with its kind under ``rope_type``."""
    kinds = {native: kind for kind, (native, _) in _SCALINGS.items()}
    native = m.rope.scaling if m.rope else None
    kind = kinds.get(kind_of(native))
    if kind is None:
        raise ConfigError(
            f"model.positions.scaling is {kind_of(native)!r}, which config files cannot"
            f" represent; supported are {', '.join(_SCALINGS)}"
        )
    fields = _SCALINGS[kind][1]
    scaling = {"rope_type": kind} | {key: getattr(native, field) for key, field in fields.items()}
    if not scaling.get("attention_factor", 1.0):
        del scaling["attention_factor"]
    if isinstance(native, LongRopeScalingConfig):
        short = native.short_factors or native.factors
        scaling |= {"long_factor": list(native.factors), "short_factor": list(short)}
    return scaling


def read_scaling(
    main: dict[str, Any], source: Mapping[str, Any], native: Mapping[str, Any], original_length: int
) -> dict[str, Any]:
    """Fields of ``ModelConfig`` for a scaling.

    Args:
        main: The rotation without its base, with its kind under ``rope_type``. It is emptied.
        source: The whole file.
        native: Fields that were read before.
        original_length: Default of ``original_max_position_embeddings`` beside the rotation, in
            tokens; 0 means none.

    Raises:
        ConfigError: The kind or a key is unknown, or a key is missing.
    """
    kind = main.pop("rope_type", "default")
    if not isinstance(kind, str) or kind not in _SCALINGS:
        raise ConfigError(
            f"config.json: rope_scaling has the type {kind!r}; supported are {', '.join(_SCALINGS)}"
        )
    name, keys = _SCALINGS[kind]
    if ORIGINAL in keys:
        original = _set_original(main, source, original_length)
        if main.get("factor") is None and original:
            main["factor"] = source.get("max_position_embeddings", 0) / original
    else:
        main.pop(ORIGINAL, None)
    out: dict[str, Any] = {_SCALING: name}
    if kind == "longrope":
        out |= _longrope(main, native)
    if kind == "yarn":
        out |= _mscale(main)
    for key, field in keys.items():
        value = main.pop(key, None)
        if value is None and key in _WITHOUT_DEFAULT:
            raise ConfigError(f"config.json: rope_scaling of type {kind!r} lacks {key}")
        if value is not None:
            path = f"{_SCALING}.{field}"
            default = settings(ModelConfig)[path][0].default
            out[path] = typed(type(default), value, f"rope_scaling.{key}")
    if main:
        raise ConfigError(
            f"config.json: rope_scaling of type {kind!r} has the unknown keys"
            f" {', '.join(map(repr, main))}"
        )
    return out


def _set_original(main: dict[str, Any], source: Mapping[str, Any], default: int) -> Any:
    """Puts the context before scaling into ``main`` and returns it. It comes from the rotation,
    from the key beside the rotation, or from the family's default.
    """
    outside = source.get(ORIGINAL, default or None)
    inside = main.setdefault(ORIGINAL, outside)
    if outside is not None and inside != outside:
        origin = "" if ORIGINAL in source else " (the default of programs of this family)"
        raise ConfigError(
            f"config.json: {ORIGINAL} is {inside!r:.50} in the rotation and {outside!r:.50} beside"
            f" it{origin}; make them equal"
        )
    return inside


def _longrope(main: dict[str, Any], native: Mapping[str, Any]) -> dict[str, Any]:
    """The lists of factors that texts of the model can select."""
    long = main.pop("long_factor", None)
    short = main.pop("short_factor", None)
    original = main.get(ORIGINAL)
    if not isinstance(long, list) or not isinstance(short, list) or not isinstance(original, int):
        raise ConfigError(
            f"config.json: rope_scaling of type 'longrope' needs long_factor, short_factor and"
            f" {ORIGINAL}"
        )
    return factors_in_use(
        tuple(typed(float, factor, "rope_scaling.long_factor") for factor in long),
        tuple(typed(float, factor, "rope_scaling.short_factor") for factor in short),
        original,
        native["max_length"],
    )


def _mscale(main: dict[str, Any]) -> dict[str, Any]:
    """DeepSeek's two scales as the one factor on sine and cosine that they amount to."""
    weight = main.pop("mscale", None)
    weight_all = main.pop("mscale_all_dim", None)
    if not (weight and weight_all) or main.get("attention_factor") is not None:
        return {}
    factor = main["factor"]
    return {
        "positions.scaling.attention_factor": yarn_scale(factor, weight)
        / yarn_scale(factor, weight_all)
    }


def yarn_scale(factor: float, weight: float) -> float:
    """yarn's scale of attention for a context ``factor`` times longer (YaRN, section 3.4)."""
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0
