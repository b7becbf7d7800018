"""Parts of tables that several families share.

A row is left out where the model has no such parameter, so biases are always among the rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llm_jax.convert.family import ConfigKey, TensorMap

_QKV = ("layers/attention/query", "layers/attention/key", "layers/attention/value")
# Paths for a tensor that holds queries, keys and values.
QKV_KERNELS = tuple(f"{path}/kernel" for path in _QKV)
QKV_BIASES = tuple(f"{path}/bias" for path in _QKV)


def affine(source: str, native: str) -> tuple[TensorMap, TensorMap]:
    """Scale and bias of a norm."""
    return (
        TensorMap(f"{source}.weight", f"{native}/scale", "d -> d"),
        TensorMap(f"{source}.bias", f"{native}/bias", "d -> d"),
    )


def dense(source: str, native: str) -> tuple[TensorMap, TensorMap]:
    """Kernel and bias of a dense layer outside of attention."""
    return (
        TensorMap(f"{source}.weight", f"{native}/kernel", "f d -> d f"),
        TensorMap(f"{source}.bias", f"{native}/bias", "f -> f"),
    )


def attention(source: str, native: str, names: tuple[str, str, str, str]) -> tuple[TensorMap, ...]:
    """Kernels and biases of an attention layer.

    Args:
        source: Name of the layer in the file.
        native: Path of the layer.
        names: Names of the projections in the file: query, key, value, out.
    """
    projections = [
        (f"{source}.{name}", f"{native}/{native_name}")
        for name, native_name in zip(names, ("query", "key", "value"))
    ]
    kernels = (TensorMap(f"{s}.weight", f"{n}/kernel", "(n h) d -> d n h") for s, n in projections)
    biases = (TensorMap(f"{s}.bias", f"{n}/bias", "(n h) -> n h") for s, n in projections)
    out = f"{source}.{names[3]}"
    return (
        *kernels,
        *biases,
        TensorMap(f"{out}.weight", f"{native}/out/kernel", "d (n h) -> n h d"),
        TensorMap(f"{out}.bias", f"{native}/out/bias", "d -> d"),
    )


def changed(keys: tuple[ConfigKey, ...], native: str, **changes: Any) -> tuple[ConfigKey, ...]:
    """``keys`` with ``changes`` to the key of the field ``native``."""
    return tuple(key._replace(**changes) if key.native == native else key for key in keys)


def reads_nothing(source: Mapping[str, Any], native: Mapping[str, Any]) -> dict[str, Any]:
    """The ``read`` of a transform whose keys are only written."""
    return {}
