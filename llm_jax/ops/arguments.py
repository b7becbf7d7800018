"""What the arguments of attention must be, whatever the backend."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from llm_jax.ops.masks import Mask, check_mask


def check_attention(
    q: Array, k: Array, v: Array, sinks: Array | None, mask: Mask | None = None
) -> tuple[int, int, int, int]:
    """The shape of q, [B, T, N, H].

    Raises:
        ValueError: the arguments of ``attention`` do not fit each other.
    """
    arrays = {"q": (q, "[B, T, N, H]"), "k": (k, "[B, S, K, H]"), "v": (v, "[B, S, K, H']")}
    for name, (x, letters) in arrays.items():
        if x.ndim != 4:
            raise ValueError(f"attention {name} has shape {x.shape}; it must be {letters}")
    B, T, N, H = q.shape
    S, K = k.shape[1:3]
    if k.shape[:3] != v.shape[:3] or K == 0 or N % K or k.shape[3] != H or k.shape[0] != B:
        raise ValueError(
            f"attention shapes disagree: q {q.shape}, k {k.shape}, v {v.shape}; they must be"
            " [B, T, N, H], [B, S, K, H] and [B, S, K, H'], with the heads after the positions and"
            " K dividing N"
        )
    if sinks is not None and sinks.shape != (N,):
        raise ValueError(
            f"attention sinks have shape {sinks.shape}; give one for each of the {N} query heads"
        )
    if mask is not None:
        check_mask(mask, B, T, S)
    return B, T, N, H


def head_bias(bias: Array | None, q: Array, k: Array) -> Array | None:
    """The bias on the scores as [B or 1, N or 1, T, S].

    Args:
        bias: of a shape that broadcasts to [B, N, T, S], or None.
        q: [B, T, N, H].
        k: [B, S, K, H].

    Raises:
        ValueError: it does not.
    """
    if bias is None:
        return None
    B, T, N = q.shape[:3]
    S = k.shape[1]
    shape = bias.shape
    whole = (1,) * (4 - bias.ndim) + shape
    if bias.ndim > 4 or any(n not in (1, m) for n, m in zip(whole, (B, N, T, S))):
        raise ValueError(
            f"attention bias {shape} does not broadcast to [B, N, T, S] of q {q.shape} and k"
            f" {k.shape}"
        )
    return jnp.broadcast_to(bias.reshape(whole), (*whole[:2], T, S))
