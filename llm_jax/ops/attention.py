"""Scaled dot-product attention, one function with several backends.

A backend that cannot honour an argument raises.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from llm_jax.ops import cpu
from llm_jax.ops.blockwise import blockwise_attention
from llm_jax.ops.masks import Mask, dense
from llm_jax.ops.nn import soft_cap as _soft_cap
from llm_jax.ops.platform import platform
from llm_jax.ops.splash import splash_attention

ALL_MASKS = frozenset({"causal", "window", "segments", "mutual", "offset"})
# The reference backend splits queries into at most _BLOCKS blocks of a multiple of _QUERIES.
_BLOCKS = 4
_QUERIES = 128


class Backend(NamedTuple):
    """An implementation and what it supports.

    Attributes:
        run: called as run(q, k, v, mask, scale=..., softcap=..., sinks=...), and bias=... where one
            is given.
        masks: the conditions of a mask that it honours.
        softcap: whether it supports a soft-cap on the scores.
        dtypes: of q, k and v.
        platforms: where it runs.
        fused: [T, S] is never materialized. It then returns 0 where a query sees no key, and names
            what its backward pass keeps ``attention_out``, so that remat can keep it.
        local: it takes the arrays of one device, and is called inside ``shard_map``.
        sinks: whether it supports attention sinks.
        value_dim: whether values may be of another width than keys.
        bias: whether it supports a bias on the scores.
        needs: conditions that a mask must have.
    """

    run: Callable[..., Array]
    masks: frozenset[str]
    softcap: bool
    dtypes: tuple[str, ...]
    platforms: tuple[str, ...]
    fused: bool = False
    local: bool = False
    sinks: bool = False
    value_dim: bool = False
    bias: bool = False
    needs: frozenset[str] = frozenset()


def attention(
    q: Array,
    k: Array,
    v: Array,
    mask: Mask = Mask(),  # noqa: B008 (frozen)
    *,
    scale: float | None = None,
    softcap: float = 0.0,
    sinks: Array | None = None,
    bias: Array | None = None,
    backend: str = "xla",
) -> Array:
    """Attention with grouped key/value heads (Vaswani et al. 2017; Ainslie et al. 2023).

    Args:
        q: [B, T, N, H].
        k: [B, S, K, H] with K dividing N; query head n uses key/value head n // (N/K).
        v: [B, S, K, H'].
        mask: which keys a query sees.
        scale: multiplies q·k; default H**-0.5.
        softcap: c·tanh(x/c) on the scores; 0 is none.
        sinks: [N], a logit for each head that takes part in the softmax and has no value (gpt-oss;
            Xiao et al. 2024, equation 2).
        bias: [B or 1, N, T, S], added to the scores after the soft-cap.
        backend: a key of ``BACKENDS``.

    Returns:
        [B, T, N, H'] in q's dtype, 0 where a query sees no key.

    Raises:
        ValueError: shapes disagree, or the backend does not support an argument, the dtype or the
            platform.
    """
    check_backend(
        backend,
        mask.features(),
        softcap=softcap,
        dtype=str(q.dtype),
        platform=platform(),
        sinks=sinks is not None,
        value_dim=v.shape[-1] != k.shape[-1],
        bias=bias is not None,
    )
    _check_shapes(q, k, v, sinks, bias)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    options: dict[str, Array] = {} if bias is None else {"bias": bias}
    out = BACKENDS[backend].run(q, k, v, mask, scale=scale, softcap=softcap, sinks=sinks, **options)
    same_row = (
        mask.q_segments is mask.k_segments and mask.k_index is None and q.shape[1] <= k.shape[1]
    )
    if same_row or BACKENDS[backend].fused:
        return out
    # A query that sees no key, possible only here, would average all values: its output is 0.
    seen = dense(mask, q.shape[1], k.shape[1])
    if seen is None:
        return out
    return jnp.where(jnp.any(seen, axis=2)[:, :, None, None], out, jnp.zeros_like(out))


def _check_shapes(q: Array, k: Array, v: Array, sinks: Array | None, bias: Array | None) -> None:
    """Raises ValueError where the arguments of ``attention`` do not fit each other."""
    B, T, N, H = q.shape
    S, K = k.shape[1:3]
    if k.shape[:3] != v.shape[:3] or N % K or k.shape[3] != H or k.shape[0] != B:
        raise ValueError(
            f"attention shapes disagree: q {q.shape}, k {k.shape}, v {v.shape}; see the docstring"
        )
    if sinks is not None and sinks.shape != (N,):
        raise ValueError(
            f"attention sinks have shape {sinks.shape}; give one for each of the {N} query heads"
        )
    if bias is not None and bias.shape not in ((1, N, T, S), (B, N, T, S)):
        raise ValueError(
            f"attention bias {bias.shape} is not [B or 1, N, T, S] of q {q.shape} and k {k.shape}"
        )


def check_backend(
    backend: str,
    masks: frozenset[str],
    *,
    softcap: float,
    dtype: str,
    platform: str,
    sinks: bool = False,
    value_dim: bool = False,
    bias: bool = False,
) -> None:
    """Checks that a backend supports everything asked of it.

    Args:
        backend: its name.
        masks: the conditions of the mask.
        softcap: of the scores.
        dtype: of q, k and v.
        platform: where it is to run.
        sinks: whether there are attention sinks.
        value_dim: whether values are of another width than keys.
        bias: whether there is a bias on the scores.

    Raises:
        ValueError: it does not; the message names what is missing and what to use.
    """
    if backend not in BACKENDS:
        raise ValueError(
            f"unknown attention backend {backend!r}; there are {', '.join(sorted(BACKENDS))}"
        )
    b = BACKENDS[backend]
    unsupported = {
        f"cannot honour the mask {sorted(masks - b.masks)}": masks - b.masks,
        f"takes only masks that are {' and '.join(sorted(b.needs))}": b.needs - masks,
        "cannot add a bias to the scores": bias and not b.bias,
        f"cannot honour softcap={softcap}": softcap and not b.softcap,
        "cannot honour attention sinks": sinks and not b.sinks,
        "cannot honour values of another width than keys": value_dim and not b.value_dim,
        f"takes {' or '.join(b.dtypes)}, not {dtype}": dtype not in b.dtypes,
        f"runs on {' or '.join(b.platforms)}, not {platform}": platform not in b.platforms,
    }
    for problem, applies in unsupported.items():
        if applies:
            raise ValueError(
                f"attention backend {backend!r} {problem}; use backend 'xla', which honours every"
                " mask"
            )


def masked_exponentials(
    scores: Array, mask: Mask, softcap: float, sinks: Array | None, bias: Array | None = None
) -> tuple[Array, Array]:
    """Numerators and denominators of the softmax of ``attention``, in float32.

    Args:
        scores: float32 [B, K, G, T, S].
        mask: which keys a query sees.
        softcap: of the scores.
        sinks: [K·G] or None.
        bias: [B or 1, K·G, T, S] or None.

    Returns:
        [B, K, G, T, S] and [B, K, G, T, 1].
    """
    scores = _soft_cap(scores, softcap)
    if bias is not None:
        scores = scores + bias.astype(jnp.float32).reshape(bias.shape[0], *scores.shape[1:])
    seen = dense(mask, *scores.shape[3:])
    if seen is not None:
        scores = jnp.where(seen[:, None, None], scores, jnp.finfo(jnp.float32).min)
    most = jnp.max(scores, axis=-1, keepdims=True)
    if sinks is not None:
        sinks = sinks.astype(jnp.float32).reshape(1, *scores.shape[1:3], 1, 1)
        most = jnp.maximum(most, sinks)
    # The subtracted maximum cancels, so it needs no gradient.
    most = jax.lax.stop_gradient(most)
    weights = jnp.exp(scores - most)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    if sinks is not None:
        total = total + jnp.exp(sinks - most)
    return weights, total


def _xla(
    q: Array,
    k: Array,
    v: Array,
    mask: Mask,
    *,
    scale: float,
    softcap: float,
    sinks: Array | None,
    bias: Array | None = None,
) -> Array:
    """The reference: every mask, every option, on every platform."""
    T = q.shape[1]
    S = k.shape[1]
    if T != S or not mask.in_order():
        return _all_pairs(q, k, v, mask, scale=scale, softcap=softcap, sinks=sinks, bias=bias)
    # No query sees a key after its own block, or before the window of the block's first query:
    # these products are left out.
    out = []
    size = -(-T // _BLOCKS // _QUERIES) * _QUERIES
    for first in range(0, T, size):
        rows = slice(first, min(first + size, T))
        keys = slice(max(0, first - mask.window + 1) if mask.window else 0, rows.stop)
        part = _all_pairs(
            q[:, rows],
            k[:, keys],
            v[:, keys],
            mask.part(rows, keys),
            scale=scale,
            softcap=softcap,
            sinks=sinks,
            bias=None if bias is None else bias[:, :, rows, keys],
        )
        out.append(part)
    return jnp.concatenate(out, axis=1)


def _all_pairs(
    q: Array,
    k: Array,
    v: Array,
    mask: Mask,
    *,
    scale: float,
    softcap: float,
    sinks: Array | None,
    bias: Array | None,
) -> Array:
    """Attention with the scores of every query and every key."""
    B, T, N, H = q.shape
    S, K = k.shape[1:3]
    # One product a key head, with the queries of all its heads as rows: [T, S] is not transposed.
    rows = q.reshape(B, T, K, N // K, H).transpose(0, 2, 3, 1, 4).reshape(B, K, -1, H)
    scores = cpu.scores(rows, jnp.swapaxes(k, 1, 2)) * scale
    weights, total = masked_exponentials(
        scores.reshape(B, K, N // K, T, S), mask, softcap, sinks, bias
    )
    weights = weights.reshape(B, K, -1, S).astype(v.dtype)
    # Before the division float16 would overflow; in bfloat16 the backward pass multiplies in
    # bfloat16 too.
    dtype = None if v.dtype == jnp.bfloat16 else jnp.float32
    out = cpu.weighted_values(weights, jnp.swapaxes(v, 1, 2), dtype)
    # Dividing here divides [T, H] values in place of [T, S].
    out = out.reshape(B, K, N // K, T, -1) / total
    return out.transpose(0, 3, 1, 2, 4).reshape(B, T, N, -1).astype(q.dtype)


def _dot_product(
    q: Array, k: Array, v: Array, mask: Mask, *, scale: float, softcap: float, sinks: Array | None
) -> Array:
    seen = dense(mask, q.shape[1], k.shape[1])
    seen = None if seen is None else seen[:, None]
    return jax.nn.dot_product_attention(q, k, v, mask=seen, scale=scale, implementation="xla")


def _cudnn(
    q: Array, k: Array, v: Array, mask: Mask, *, scale: float, softcap: float, sinks: Array | None
) -> Array:
    if mask.features() <= {"causal", "window"}:
        # With native flags the kernel reads no [B, T, S] mask.
        window = None
        if mask.window:
            window = (mask.window - 1, 0 if mask.causal else mask.window - 1)
        return jax.nn.dot_product_attention(
            q,
            k,
            v,
            scale=scale,
            is_causal=mask.causal,
            local_window_size=window,
            implementation="cudnn",
        )
    seen = dense(mask, q.shape[1], k.shape[1])
    assert seen is not None
    shape = (q.shape[0], q.shape[2], q.shape[1], k.shape[1])
    seen = jnp.broadcast_to(seen[:, None], shape)
    return jax.nn.dot_product_attention(q, k, v, mask=seen, scale=scale, implementation="cudnn")


def _blockwise(
    q: Array, k: Array, v: Array, mask: Mask, *, scale: float, softcap: float, sinks: Array | None
) -> Array:
    return blockwise_attention(q, k, v, mask, scale=scale, softcap=softcap, sinks=sinks)


def _splash(
    q: Array, k: Array, v: Array, mask: Mask, *, scale: float, softcap: float, sinks: Array | None
) -> Array:
    return splash_attention(q, k, v, mask, scale=scale, softcap=softcap, sinks=sinks)


_FLOATS = ("float32", "bfloat16", "float16")
_ANYWHERE = ("cpu", "gpu", "tpu")
BACKENDS = {
    "xla": Backend(
        run=_xla,
        masks=ALL_MASKS,
        softcap=True,
        dtypes=_FLOATS,
        platforms=_ANYWHERE,
        sinks=True,
        value_dim=True,
        bias=True,
    ),
    "dot_product": Backend(
        run=_dot_product, masks=ALL_MASKS, softcap=False, dtypes=_FLOATS, platforms=_ANYWHERE
    ),
    "blockwise": Backend(
        run=_blockwise,
        masks=ALL_MASKS,
        softcap=True,
        dtypes=_FLOATS,
        platforms=_ANYWHERE,
        fused=True,
        local=True,
        sinks=True,
        value_dim=True,
    ),
    "splash": Backend(
        run=_splash,
        masks=frozenset({"causal", "window", "segments"}),
        softcap=True,
        dtypes=("bfloat16", "float32"),
        platforms=("tpu",),
        fused=True,
        local=True,
        sinks=True,
        value_dim=True,
        needs=frozenset({"causal"}),
    ),
    "cudnn": Backend(
        run=_cudnn,
        masks=ALL_MASKS - {"offset"},
        softcap=False,
        dtypes=("bfloat16", "float16"),
        platforms=("gpu",),
    ),
}
