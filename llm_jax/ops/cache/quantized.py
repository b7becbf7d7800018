"""Keys, values and latents as int8, with one scale for each vector, and attention over them.

The scale of a vector is its largest magnitude divided by 127, and each of its numbers is off by at
most half a scale. A score of a query q and a key of scale s is thus off by at most ‖q‖₁·s/2.

Nothing is written back to memory as floats: a scale of a key multiplies its scores, and a scale of
a value its weights.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from llm_jax.ops import cpu
from llm_jax.ops.attention import Options, masked_exponentials
from llm_jax.ops.masks import Mask
from llm_jax.ops.precision import accumulator

_MOST = 127.0


class Quantized(NamedTuple):
    """Vectors in int8.

    Attributes:
        numbers: int8 [..., H], from -127 to 127.
        scales: float32 [...], what the numbers of each vector are multiplied by.
    """

    numbers: Array
    scales: Array

    def floats(self, dtype: jnp.dtype) -> Array:
        """[..., H] in ``dtype``."""
        return (self.numbers.astype(jnp.float32) * self.scales[..., None]).astype(dtype)


# Vectors [..., H] as a cache keeps them.
Vectors = Array | Quantized


def quantize(x: Array) -> Quantized:
    """x [..., H] as int8. A vector with a NaN or an infinity gets a scale that is not finite, so
    that it does not become one that is.
    """
    exact = x.astype(jnp.float32)
    scales = jnp.max(jnp.abs(exact), axis=-1) / _MOST
    # A vector of zeros has the scale 0.
    divisors = jnp.where(scales == 0, 1.0, scales)[..., None]
    numbers = jnp.clip(jnp.round(exact / divisors), -_MOST, _MOST)
    return Quantized(numbers.astype(jnp.int8), scales)


def zero_vectors(shape: tuple[int, ...], dtype: jnp.dtype, *, int8: bool) -> Vectors:
    """Vectors of zeros, of ``dtype`` or in int8."""
    if int8:
        return Quantized(jnp.zeros(shape, jnp.int8), jnp.zeros(shape[:-1], jnp.float32))
    return jnp.zeros(shape, dtype)


def as_stored(x: Array, slots: Vectors) -> Vectors:
    """x [..., H] as the vectors of ``slots`` are kept."""
    return quantize(x) if isinstance(slots, Quantized) else x.astype(slots.dtype)


def as_floats(vectors: Vectors, dtype: jnp.dtype) -> Array:
    """Kept vectors in ``dtype``."""
    return vectors.floats(dtype) if isinstance(vectors, Quantized) else vectors.astype(dtype)


def vector_axes(names: tuple[str | None, ...], slots: Vectors) -> Vectors:
    """Logical axes in the place of each array of ``slots``, of vectors with the axes ``names``."""
    if isinstance(slots, Quantized):
        return Quantized(names, names[:-1])  # type: ignore[arg-type]
    return names  # type: ignore[return-value]


def quantized_attention(
    q: Array, keys: Quantized, values: Quantized, mask: Mask, options: Options
) -> Array:
    """``ops.attention`` over int8 keys and values.

    Args:
        q: [B, T, N, H].
        keys: numbers [B, K, S, H] and scales [B, K, S].
        values: numbers [B, K, S, H'] and scales [B, K, S].
        mask: which keys a query sees.
        options: of attention; without dropout.

    Returns:
        [B, T, N, H'] in q's dtype, 0 where a query sees no key.
    """
    B, T, N, H = q.shape
    K, S = keys.scales.shape[1:]
    acc = accumulator(q)
    rows = q.reshape(B, T, K, N // K, H).transpose(0, 2, 3, 1, 4).reshape(B, K, -1, H)
    scores = cpu.scores(rows, keys.numbers.astype(q.dtype)).astype(acc)
    scores = scores * (keys.scales[:, :, None, :] * options.scale).astype(acc)
    weights, total = masked_exponentials(
        scores.reshape(B, K, N // K, T, S), mask, options.softcap, options.sinks, options.bias
    )
    weights = weights.reshape(B, K, -1, S) * values.scales[:, :, None, :].astype(acc)
    out = cpu.weighted_values(weights.astype(q.dtype), values.numbers.astype(q.dtype), acc)
    out = out.reshape(B, K, N // K, T, -1) / total
    return out.transpose(0, 3, 1, 2, 4).reshape(B, T, N, -1).astype(q.dtype)
