"""Rows that several families share. A row without a parameter in a model is left out, so biases are
always among them.
"""

from __future__ import annotations

from llm_jax.convert.family import TensorMap

_QKV = ("layers/attention/query", "layers/attention/key", "layers/attention/value")
# Where one tensor holds all three.
QKV_KERNELS, QKV_BIASES = (
    tuple(f"{path}/kernel" for path in _QKV),
    tuple(f"{path}/bias" for path in _QKV),
)


def affine(source: str, native: str) -> tuple[TensorMap, TensorMap]:
    """A norm with its bias."""
    return TensorMap(f"{source}.weight", f"{native}/scale", "d -> d"), TensorMap(
        f"{source}.bias", f"{native}/bias", "d -> d"
    )


def dense(source: str, native: str) -> tuple[TensorMap, TensorMap]:
    """A layer that is no part of attention."""
    return TensorMap(f"{source}.weight", f"{native}/kernel", "f d -> d f"), TensorMap(
        f"{source}.bias", f"{native}/bias", "f -> f"
    )


def attention(source: str, native: str, names: tuple[str, str, str, str]) -> tuple[TensorMap, ...]:
    """An attention whose projections they call ``names``: query, key, value, out."""
    into = [
        (f"{source}.{name}", f"{native}/{our}")
        for name, our in zip(names, ("query", "key", "value"))
    ]
    return (
        *(TensorMap(f"{name}.weight", f"{our}/kernel", "(n h) d -> d n h") for name, our in into),
        *(TensorMap(f"{name}.bias", f"{our}/bias", "(n h) -> n h") for name, our in into),
        TensorMap(f"{source}.{names[3]}.weight", f"{native}/out/kernel", "d (n h) -> n h d"),
        TensorMap(f"{source}.{names[3]}.bias", f"{native}/out/bias", "d -> d"),
    )
