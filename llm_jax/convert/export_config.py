"""The ``config.json`` of an exported model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llm_jax.config.model import ModelConfig
from llm_jax.convert.canonical import resolved
from llm_jax.convert.config_json import read_config, write_config
from llm_jax.convert.family import Family
from llm_jax.types import ConfigError

# Keys that old files have beside rope_scaling, and new files inside rope_parameters.
_BESIDE_ROPE_SCALING = ("rope_theta", "partial_rotary_factor")
_ROTATIONS = ("rope_scaling", "rope_parameters")


def export_config(family: Family, model: ModelConfig, source: Mapping[str, Any]) -> dict[str, Any]:
    """The config that a model is exported with.

    Rotations are written in the schema of old files and in that of new ones, so that old and new
    programs read the same model.

    Args:
        family: The family to export to.
        model: The model.
        source: The config that the model was converted from, or an empty mapping. It is kept where
            it still describes the model.

    Raises:
        ConfigError: The family cannot represent the model.
    """
    if not _describes(family, source, model):
        # Bookkeeping of the source, such as token ids, is kept.
        return {**source, **write_config(family, model)}
    rotation: dict[str, Any] = {}
    for codec in family.codecs:
        if "rope_scaling" in codec.keys:
            rotation = codec.write(model)
            break
    beside = {key: value for key, value in rotation.items() if key not in _ROTATIONS}
    # Keys that transformers has defaults for are written out, because other programs have other
    # defaults: without them vLLM leaves out the correction of DeepSeek-V3's router, and llama.cpp
    # takes a softmax.
    out = {**family.implicit_defaults, **beside, **source}
    if rotation:
        _add_rotation(out, rotation, source)
    return out


def _describes(family: Family, source: Mapping[str, Any], model: ModelConfig) -> bool:
    """Whether the config ``source`` is one of the model."""
    if not source:
        return False
    try:
        read = read_config(family, source, tuple(source), model.max_length)
    except ConfigError:
        return False
    return resolved(read) == resolved(model)


def _add_rotation(
    out: dict[str, Any], written: Mapping[str, Any], source: Mapping[str, Any]
) -> None:
    """Adds the schema of the rotation that ``source`` lacks.

    Args:
        out: The config, which is changed.
        written: Both schemas, as the family writes them for the model.
        source: The config that the model was converted from.
    """
    new = source.get("rope_parameters")
    old = source.get("rope_scaling")
    if new and not old:
        main = new.get("full_attention", new)
        scaling = {k: value for k, value in main.items() if k not in _BESIDE_ROPE_SCALING}
        kind = _kind(scaling)
        out["rope_scaling"] = None if kind == "default" else {**scaling, "type": kind}
    elif not new:
        parameters = written["rope_parameters"]
        main = parameters.get("full_attention", parameters)
        scaling = dict(old or {})
        scaling["rope_type"] = _kind(scaling)
        scaling |= {k: value for k, value in main.items() if k in _BESIDE_ROPE_SCALING}
        out.setdefault("rope_scaling", None)
        by_layers = main is not parameters
        out["rope_parameters"] = {**parameters, "full_attention": scaling} if by_layers else scaling


def _kind(rotation: Mapping[str, Any]) -> str:
    return rotation.get("rope_type") or rotation.get("type") or "default"
