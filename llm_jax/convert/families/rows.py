"""Rows that several families share. A row without a parameter in a model is left out, so biases are
always among them.
"""

from __future__ import annotations

from llm_jax.convert.family import Row

_QKV = ("layers/attention/query", "layers/attention/key", "layers/attention/value")
# Where one tensor holds all three.
QKV_KERNELS, QKV_BIASES = (
    tuple(f"{path}/kernel" for path in _QKV),
    tuple(f"{path}/bias" for path in _QKV),
)


def affine(theirs: str, ours: str) -> tuple[Row, Row]:
    """A norm with its bias."""
    return Row(f"{theirs}.weight", f"{ours}/scale", "d -> d"), Row(
        f"{theirs}.bias", f"{ours}/bias", "d -> d"
    )


def dense(theirs: str, ours: str) -> tuple[Row, Row]:
    """A layer that is no part of attention."""
    return Row(f"{theirs}.weight", f"{ours}/kernel", "f d -> d f"), Row(
        f"{theirs}.bias", f"{ours}/bias", "f -> f"
    )


def attention(theirs: str, ours: str, names: tuple[str, str, str, str]) -> tuple[Row, ...]:
    """An attention whose projections they call ``names``: query, key, value, out."""
    into = [
        (f"{theirs}.{name}", f"{ours}/{our}") for name, our in zip(names, ("query", "key", "value"))
    ]
    return (
        *(Row(f"{name}.weight", f"{our}/kernel", "(n h) d -> d n h") for name, our in into),
        *(Row(f"{name}.bias", f"{our}/bias", "(n h) -> n h") for name, our in into),
        Row(f"{theirs}.{names[3]}.weight", f"{ours}/out/kernel", "d (n h) -> n h d"),
        Row(f"{theirs}.{names[3]}.bias", f"{ours}/out/bias", "d -> d"),
    )
