"""Scaled dot-product attention through one function that picks a backend. A backend that cannot
honour a mask raises.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from llm_jax.ops.blockwise import blockwise_attention
from llm_jax.ops.masks import Mask, dense
from llm_jax.ops.nn import soft_cap as _soft_cap
from llm_jax.ops.platform import platform
from llm_jax.ops.splash import splash_attention

ALL_MASKS = frozenset({"causal", "window", "segments", "prefix", "offset"})
# The reference has at most so many blocks, of a multiple of so many queries.
_BLOCKS, _QUERIES = 4, 128
# Fewer queries of a head of keys are those of a decoding step. A CPU sums values over so many slots
# first, and scores in so many parts.
_FEW, _SLOTS, _LANES = 8, 16, 8


class Backend(NamedTuple):
    """An implementation and what it can do.

    fused: [T, S] never exists in it. It gives 0 itself where a query sees no key, and names what
    its backward pass keeps of the forward
    pass ``attention_out``, so that remat can keep it. local: it takes what is on one device, and is
    called inside ``shard_map``.
    sinks: it takes a logit of each head into the softmax. value_dim: its values may have another
    width than its keys. bias: it takes
    one, as a keyword. needs: conditions that a mask must have.
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

    q: [B, T, N, H], k and v: [B, S, K, H] with K dividing N; query head n uses key/value head n //
    (N/K). The values' H may be another.
    scale: multiplies q·k, default H**-0.5. softcap: c·tanh(x/c) on the scores. bias: [B or 1, N, T,
    S], added to them after it.
    sinks: [N], of each head a logit that has its part in the softmax and no value (gpt-oss; Xiao et
    al. 2024, equation 2). Returns [B, T, N, H] in q's dtype, 0 where a query sees no key. Raises
    ValueError when shapes disagree, or when the backend cannot honour the mask, soft-cap, sinks,
    bias, widths, dtype or platform.
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
    if (
        k.shape[:3] != v.shape[:3]
        or q.shape[2] % k.shape[2]
        or q.shape[3] != k.shape[3]
        or q.shape[0] != k.shape[0]
    ):
        raise ValueError(
            f"attention shapes disagree: q {q.shape}, k {k.shape}, v {v.shape}; see the docstring"
        )
    if sinks is not None and sinks.shape != q.shape[2:3]:
        raise ValueError(
            f"attention sinks have shape {sinks.shape}; give one for each of the {q.shape[2]} query"
            " heads"
        )
    if bias is not None and bias.shape not in [
        (rows, q.shape[2], q.shape[1], k.shape[1]) for rows in (1, q.shape[0])
    ]:
        raise ValueError(
            f"attention bias {bias.shape} is not [B or 1, N, T, S] of q {q.shape} and k {k.shape}"
        )
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    out = BACKENDS[backend].run(
        q, k, v, mask, scale, softcap, sinks, **({} if bias is None else {"bias": bias})
    )
    same_row = (
        mask.q_segments is mask.k_segments and mask.k_index is None and q.shape[1] <= k.shape[1]
    )
    if same_row or BACKENDS[backend].fused:
        return out
    # A query that sees no key (possible only here) would average all of them: its output is 0
    # instead.
    seen = dense(mask, q.shape[1], k.shape[1])
    return (
        out
        if seen is None
        else jnp.where(jnp.any(seen, axis=2)[:, :, None, None], out, jnp.zeros_like(out))
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
    """Raise ValueError, naming what is missing and what to use, unless ``backend`` honours
    everything asked of it. value_dim: values of another width than keys.
    """
    if backend not in BACKENDS:
        raise ValueError(
            f"unknown attention backend {backend!r}; there are {', '.join(sorted(BACKENDS))}"
        )
    b, fix = BACKENDS[backend], "use backend 'xla', which honours every mask"
    if masks - b.masks:
        raise ValueError(
            f"attention backend {backend!r} cannot honour the mask {sorted(masks - b.masks)}; {fix}"
        )
    if b.needs - masks:
        raise ValueError(
            f"attention backend {backend!r} takes only masks that are"
            f" {' and '.join(sorted(b.needs))}; {fix}"
        )
    if bias and not b.bias:
        raise ValueError(f"attention backend {backend!r} cannot add a bias to the scores; {fix}")
    if softcap and not b.softcap:
        raise ValueError(f"attention backend {backend!r} cannot honour softcap={softcap}; {fix}")
    if sinks and not b.sinks:
        raise ValueError(f"attention backend {backend!r} cannot honour attention sinks; {fix}")
    if value_dim and not b.value_dim:
        raise ValueError(
            f"attention backend {backend!r} cannot honour values of another width than keys; {fix}"
        )
    if dtype not in b.dtypes:
        raise ValueError(
            f"attention backend {backend!r} takes {' or '.join(b.dtypes)}, not {dtype}; {fix}"
        )
    if platform not in b.platforms:
        raise ValueError(
            f"attention backend {backend!r} runs on {' or '.join(b.platforms)}, not {platform};"
            f" {fix}"
        )


def masked_exponentials(
    scores: Array, mask: Mask, softcap: float, sinks: Array | None, bias: Array | None = None
) -> tuple[Array, Array]:
    """Numerators [B, K, G, T, S] and denominators [B, K, G, T, 1] of the softmax of ``attention``,
    float32. scores: float32 [B, K, G, T, S], sinks: [K·G] or None, bias: [B or 1, K·G, T, S] or
    None.
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
    # What is taken off cancels, so that nothing flows back through it.
    most = jax.lax.stop_gradient(most)
    weights = jnp.exp(scores - most)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    return weights, total if sinks is None else total + jnp.exp(sinks - most)


def _xla(
    q: Array,
    k: Array,
    v: Array,
    mask: Mask,
    scale: float,
    softcap: float,
    sinks: Array | None,
    bias: Array | None = None,
) -> Array:
    T, S = q.shape[1], k.shape[1]
    if T != S or not mask.in_order():
        return _of_keys(q, k, v, mask, scale, softcap, sinks, bias)
    # No query sees a key after its own block, or before the window of the block's first: these are
    # never multiplied.
    out, size = [], -(-T // _BLOCKS // _QUERIES) * _QUERIES
    for first in range(0, T, size):
        rows = slice(first, min(first + size, T))
        keys = slice(max(0, first - mask.window + 1) if mask.window else 0, rows.stop)
        added = None if bias is None else bias[:, :, rows, keys]
        out.append(
            _of_keys(
                q[:, rows],
                k[:, keys],
                v[:, keys],
                mask.part(rows, keys),
                scale,
                softcap,
                sinks,
                added,
            )
        )
    return jnp.concatenate(out, axis=1)


def _of_keys(
    q: Array,
    k: Array,
    v: Array,
    mask: Mask,
    scale: float,
    softcap: float,
    sinks: Array | None,
    bias: Array | None,
) -> Array:
    """Every query with every key."""
    (B, T, N, H), S, K = q.shape, k.shape[1], k.shape[2]
    # One product for each head of keys, the queries of all its heads as rows: what is [T, S] is
    # never transposed.
    rows = q.reshape(B, T, K, N // K, H).transpose(0, 2, 3, 1, 4).reshape(B, K, -1, H)
    scores = _scores(rows, jnp.swapaxes(k, 1, 2)) * scale
    weights, total = masked_exponentials(
        scores.reshape(B, K, N // K, T, S), mask, softcap, sinks, bias
    )
    weights = weights.reshape(B, K, -1, S).astype(v.dtype)
    # Undivided, float16 would overflow. In bfloat16 the backward pass is to multiply in bfloat16
    # too.
    kept = None if v.dtype == jnp.bfloat16 else jnp.float32
    out = _weighted(weights, jnp.swapaxes(v, 1, 2), kept)
    # The sum divides what is [T, H] and not what is [T, S].
    out = out.reshape(B, K, N // K, T, -1) / total
    return out.transpose(0, 3, 1, 2, 4).reshape(B, T, N, -1).astype(q.dtype)


def _scores(q: Array, k: Array) -> Array:
    """q [B, K, Q, H] times k [B, K, S, H] over H: float32 [B, K, Q, S]."""
    if not _step_on_cpu(q) or q.shape[3] % _LANES:
        return jnp.einsum("bkqh,bksh->bkqs", q, k, preferred_element_type=jnp.float32)
    lanes = (-1, _LANES)
    return _summed(q.reshape(*q.shape[:3], 1, *lanes), k.reshape(*k.shape[:3], *lanes), then=3)


def _weighted(weights: Array, v: Array, dtype: jnp.dtype | None) -> Array:
    """weights [B, K, Q, S] times v [B, K, S, H] over S: [B, K, Q, H] in ``dtype``."""
    if not _step_on_cpu(weights) or v.shape[2] % _SLOTS:
        return jnp.einsum("bkqs,bksh->bkqh", weights, v, preferred_element_type=dtype)
    blocks = (-1, _SLOTS)
    return _summed(
        weights.reshape(*weights.shape[:3], *blocks, 1),
        v.reshape(*v.shape[:2], *blocks, v.shape[3]),
        then=2,
    )


def _step_on_cpu(rows: Array) -> bool:
    """Whether a product of rows [B, K, Q, …] with a cache is one of a decoding step on a CPU, with
    few queries and more than one.
    """
    return platform() == "cpu" and 1 < rows.shape[2] < _FEW and rows.dtype == jnp.float32


def _summed(rows: Array, cache: Array, then: int) -> Array:
    """cache [B, K, …] times each of rows [B, K, Q, …], summed over axis 3 and over axis ``then`` of
    what that leaves: [B, K, Q, …].

    XLA's CPU backend gives a product of so few rows to one core. These sums it shares out, and
    reads the cache once for all the rows.
    """
    terms = [cache * rows[:, :, row] for row in range(rows.shape[2])]
    return jnp.stack(_sums(_sums(terms, 3), then), axis=2)


def _sums(terms: list[Array], axis: int) -> list[Array]:
    """The sum over ``axis`` of each, in one pass."""

    def add(a: list[Array], b: list[Array]) -> list[Array]:
        return [x + y for x, y in zip(a, b, strict=True)]

    return jax.lax.reduce(terms, [np.float32(0)] * len(terms), add, (axis,))


def _dot_product(
    q: Array, k: Array, v: Array, mask: Mask, scale: float, softcap: float, sinks: Array | None
) -> Array:
    seen = dense(mask, q.shape[1], k.shape[1])
    seen = None if seen is None else seen[:, None]
    return jax.nn.dot_product_attention(q, k, v, mask=seen, scale=scale, implementation="xla")


def _cudnn(
    q: Array, k: Array, v: Array, mask: Mask, scale: float, softcap: float, sinks: Array | None
) -> Array:
    if mask.features() <= {"causal", "window"}:
        # Native flags keep the kernel from reading a [B, T, S] mask.
        window = (mask.window - 1, 0 if mask.causal else mask.window - 1) if mask.window else None
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
    q: Array, k: Array, v: Array, mask: Mask, scale: float, softcap: float, sinks: Array | None
) -> Array:
    return blockwise_attention(q, k, v, mask, scale=scale, softcap=softcap, sinks=sinks)


def _splash(
    q: Array, k: Array, v: Array, mask: Mask, scale: float, softcap: float, sinks: Array | None
) -> Array:
    return splash_attention(q, k, v, mask, scale=scale, softcap=softcap, sinks=sinks)


_FLOATS = ("float32", "bfloat16", "float16")
_ANYWHERE = ("cpu", "gpu", "tpu")
BACKENDS = {
    "xla": Backend(
        _xla, ALL_MASKS, True, _FLOATS, _ANYWHERE, sinks=True, value_dim=True, bias=True
    ),
    "dot_product": Backend(_dot_product, ALL_MASKS, False, _FLOATS, _ANYWHERE),
    "blockwise": Backend(
        _blockwise,
        ALL_MASKS,
        True,
        _FLOATS,
        _ANYWHERE,
        fused=True,
        local=True,
        sinks=True,
        value_dim=True,
    ),
    "splash": Backend(
        _splash,
        frozenset({"causal", "window", "segments"}),
        True,
        ("bfloat16", "float32"),
        ("tpu",),
        fused=True,
        local=True,
        sinks=True,
        value_dim=True,
        needs=frozenset({"causal"}),
    ),
    "cudnn": Backend(_cudnn, ALL_MASKS - {"offset"}, False, ("bfloat16", "float16"), ("gpu",)),
}
