"""Scaled dot-product attention, one function with several backends.

A backend that cannot honour an argument raises.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from llm_jax.ops import cpu
from llm_jax.ops.arguments import check_attention, head_bias
from llm_jax.ops.blockwise import blockwise_attention
from llm_jax.ops.masks import Mask, as_mask, dense
from llm_jax.ops.meshes import explicit_spec, place_automatically
from llm_jax.ops.nn import check_rate
from llm_jax.ops.nn import dropout as _dropout
from llm_jax.ops.nn import soft_cap as _soft_cap
from llm_jax.ops.platform import platform
from llm_jax.ops.precision import accumulator
from llm_jax.ops.splash import splash_attention

ALL_MASKS = frozenset({"causal", "window", "segments", "mutual", "offset", "array"})
# The reference backend splits queries into at most _BLOCKS blocks of a multiple of _QUERIES.
_BLOCKS = 4
_QUERIES = 128


class Options(NamedTuple):
    """What changes the scores of attention and their weights.

    Attributes:
        scale: multiplies q·k.
        softcap: of the scores; 0 is none.
        sinks: [N] or None.
        bias: [B or 1, N or 1, T, S] or None.
        dropout: share of the weights that is zeroed.
        dropout_key: None is no dropout.
    """

    scale: float
    softcap: float = 0.0
    sinks: Array | None = None
    bias: Array | None = None
    dropout: float = 0.0
    dropout_key: Array | None = None


class Backend(NamedTuple):
    """An implementation and what it supports.

    Attributes:
        run: called as run(q, k, v, mask, options).
        masks: the conditions of a mask that it honours.
        softcap: whether it supports a soft-cap on the scores.
        dtypes: of q, k and v.
        platforms: where it runs.
        fused: [T, S] is never materialized. It names what its backward pass keeps
            ``attention_out``, so that remat can keep it.
        local: it takes the arrays of one device, and is called inside ``shard_map``.
        sinks: whether it supports attention sinks.
        value_dim: whether values may be of another width than keys.
        bias: whether it supports a bias on the scores.
        dropout: whether it supports dropout of the weights.
        needs: conditions that a mask must have.
    """

    run: Callable[[Array, Array, Array, Mask, Options], Array]
    masks: frozenset[str]
    softcap: bool
    dtypes: tuple[str, ...]
    platforms: tuple[str, ...]
    fused: bool = False
    local: bool = False
    sinks: bool = False
    value_dim: bool = False
    bias: bool = False
    dropout: bool = False
    needs: frozenset[str] = frozenset()


def attention(
    q: Array,
    k: Array,
    v: Array,
    mask: Mask | Array | None = Mask(),  # noqa: B008 (frozen)
    *,
    scale: float | None = None,
    softcap: float = 0.0,
    sinks: Array | None = None,
    bias: Array | None = None,
    dropout: float = 0.0,
    dropout_key: Array | None = None,
    backend: str = "xla",
) -> Array:
    """Attention with grouped key/value heads (Vaswani et al. 2017; Ainslie et al. 2023).

    The mask wins: whatever the bias, a query never sees a key that the mask forbids.

    Args:
        q: [B, T, N, H].
        k: [B, S, K, H] with K dividing N; query head n uses key/value head n // (N/K).
        v: [B, S, K, H'].
        mask: which keys a query sees: a ``Mask``, by default a causal one whose last query stands
            at the last key; None, all of them; or a bool array [T, S], [B, T, S] or [B, 1, T, S],
            each axis of which may be 1, True where the query sees the key.
        scale: multiplies q·k; default H**-0.5.
        softcap: c·tanh(x/c) on the scores; 0 is none.
        sinks: [N], a logit for each head that takes part in the softmax and has no value (gpt-oss;
            Xiao et al. 2024, equation 2).
        bias: added to the scores after the soft-cap, of a shape that broadcasts to [B, N, T, S].
            A key with a bias of -inf is not seen.
        dropout: share of the weights that is zeroed, from 0 to below 1; the others are divided by
            1 - dropout.
        dropout_key: a key of ``jax.random``; None is no dropout.
        backend: a key of ``BACKENDS``.

    Returns:
        [B, T, N, H'] in q's dtype, 0 where a query sees no key, with gradients of 0. Sums are kept
        in float32, or in float64 for arrays of it.

    Raises:
        ValueError: shapes disagree, or the backend does not support an argument, the dtype or the
            platform.
    """
    B, T, _, H = check_attention(q, k, v, sinks)
    mask = as_mask(mask, B, T, k.shape[1])
    check_attention(q, k, v, sinks, mask)
    check_rate("attention dropout", dropout)
    check_backend(
        backend,
        mask.features(),
        softcap=softcap,
        dtype=str(q.dtype),
        platform=platform(),
        sinks=sinks is not None,
        value_dim=v.shape[-1] != k.shape[-1],
        bias=bias is not None,
        dropout=bool(dropout) and dropout_key is not None,
    )
    options = Options(
        scale=H**-0.5 if scale is None else scale,
        softcap=softcap,
        sinks=sinks,
        bias=head_bias(bias, q, k),
        dropout=dropout,
        dropout_key=dropout_key if dropout else None,
    )
    arrays = (options.sinks, options.bias, options.dropout_key)

    def run(q: Array, k: Array, v: Array, mask: Mask, arrays: tuple) -> Array:
        sinks, bias, key = arrays
        given = options._replace(sinks=sinks, bias=bias, dropout_key=key)
        return BACKENDS[backend].run(q, k, v, mask, given)

    return place_automatically(run, explicit_spec(q, 3), q, k, v, mask, arrays)


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
    dropout: bool = False,
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
        dropout: whether weights are dropped.

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
        "cannot drop weights (dropout)": dropout and not b.dropout,
        f"cannot honour softcap={softcap}": softcap and not b.softcap,
        "cannot honour attention sinks": sinks and not b.sinks,
        "cannot honour values of another width than keys": value_dim and not b.value_dim,
        f"takes {' or '.join(b.dtypes)}, not {dtype}": dtype not in b.dtypes,
        f"runs on {' or '.join(b.platforms)}, not {platform}": platform not in b.platforms,
    }
    for problem, applies in unsupported.items():
        if applies:
            raise ValueError(f"attention backend {backend!r} {problem}; {_instead(backend, dtype)}")


def _instead(backend: str, dtype: str) -> str:
    """What to use in place of a backend that does not support what was asked."""
    if dtype not in BACKENDS["xla"].dtypes:
        return f"cast q, k and v to one of {', '.join(BACKENDS['xla'].dtypes)}"
    return "use backend 'xla', which honours every mask"


def masked_exponentials(
    scores: Array, mask: Mask, softcap: float, sinks: Array | None, bias: Array | None = None
) -> tuple[Array, Array]:
    """Numerators and denominators of the softmax of ``attention``.

    Args:
        scores: float32 or float64 [B, K, G, T, S].
        mask: which keys a query sees.
        softcap: of the scores.
        sinks: [K·G] or None.
        bias: [B or 1, K·G or 1, T, S] or None.

    Returns:
        [B, K, G, T, S], 0 for a key that is not seen, and [B, K, G, T, 1], 1 where no key is seen.
    """
    scores = _soft_cap(scores, softcap)
    if bias is not None:
        heads = (1, 1) if bias.shape[1] == 1 else scores.shape[1:3]
        scores = scores + bias.astype(scores.dtype).reshape(
            bias.shape[0], *heads, *scores.shape[3:]
        )
    seen = dense(mask, *scores.shape[3:])
    if seen is not None:
        # A lower score than -inf there is none: no bias makes up for the mask.
        scores = jnp.where(seen[:, None, None], scores, -jnp.inf)
    most = jnp.max(scores, axis=-1, keepdims=True)
    if sinks is not None:
        sinks = sinks.astype(scores.dtype).reshape(1, *scores.shape[1:3], 1, 1)
        most = jnp.maximum(most, sinks)
    # The subtracted maximum cancels, so it needs no gradient. Where it is -inf no key is seen.
    most = jax.lax.stop_gradient(jnp.where(most == -jnp.inf, 0.0, most))
    weights = jnp.exp(scores - most)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    if sinks is not None:
        total = total + jnp.exp(sinks - most)
    return weights, jnp.where(total == 0, 1.0, total)


def _xla(q: Array, k: Array, v: Array, mask: Mask, options: Options) -> Array:
    """The reference: every mask, every option, on every platform."""
    T = q.shape[1]
    S = k.shape[1]
    if T != S or not mask.in_order():
        return _all_pairs(q, k, v, mask, options)
    # No query sees a key after its own block, or before the window of the block's first query:
    # these products are left out.
    out = []
    size = -(-T // _BLOCKS // _QUERIES) * _QUERIES
    bias = options.bias
    key = options.dropout_key
    for first in range(0, T, size):
        rows = slice(first, min(first + size, T))
        keys = slice(max(0, first - mask.window + 1) if mask.window else 0, rows.stop)
        of_part = options._replace(
            bias=None if bias is None else bias[:, :, rows, keys],
            dropout_key=None if key is None else jax.random.fold_in(key, first),
        )
        part = _all_pairs(q[:, rows], k[:, keys], v[:, keys], mask.part(rows, keys), of_part)
        out.append(part)
    return jnp.concatenate(out, axis=1)


def _all_pairs(q: Array, k: Array, v: Array, mask: Mask, options: Options) -> Array:
    """Attention with the scores of every query and every key."""
    B, T, N, H = q.shape
    S, K = k.shape[1:3]
    # One product a key head, with the queries of all its heads as rows: [T, S] is not transposed.
    rows = q.reshape(B, T, K, N // K, H).transpose(0, 2, 3, 1, 4).reshape(B, K, -1, H)
    scores = _scores(rows, jnp.swapaxes(k, 1, 2)) * options.scale
    weights, total = masked_exponentials(
        scores.reshape(B, K, N // K, T, S), mask, options.softcap, options.sinks, options.bias
    )
    weights = _dropout(weights, options.dropout, options.dropout_key)
    weights = weights.reshape(B, K, -1, S).astype(v.dtype)
    out = _weighted_values(weights, jnp.swapaxes(v, 1, 2))
    # Dividing here divides [T, H] values in place of [T, S].
    out = out.reshape(B, K, N // K, T, -1) / total
    return out.transpose(0, 3, 1, 2, 4).reshape(B, T, N, -1).astype(q.dtype)


def _scores(q: Array, k: Array) -> Array:
    """The product of q [B, K, Q, H] and k [B, K, S, H] over H: [B, K, Q, S]."""
    if accumulator(q, k) == jnp.float32:
        return cpu.scores(q, k)
    return jnp.einsum("bkqh,bksh->bkqs", q, k)


def _weighted_values(weights: Array, v: Array) -> Array:
    """The product of weights [B, K, Q, S] and v [B, K, S, H] over S: [B, K, Q, H]."""
    if accumulator(v) != jnp.float32:
        return jnp.einsum("bkqs,bksh->bkqh", weights, v)
    # Before the division float16 would overflow; in bfloat16 the backward pass multiplies in
    # bfloat16 too.
    return cpu.weighted_values(weights, v, None if v.dtype == jnp.bfloat16 else jnp.float32)


def _dot_product(q: Array, k: Array, v: Array, mask: Mask, options: Options) -> Array:
    run = partial(jax.nn.dot_product_attention, scale=options.scale, implementation="xla")
    seen = dense(mask, q.shape[1], k.shape[1])
    if seen is None:
        return run(q, k, v)
    return _zero_where_unseen(run(q, k, v, mask=seen[:, None]), mask, seen)


def _zero_where_unseen(out: Array, mask: Mask, seen: Array) -> Array:
    """0 for a query that sees no key, which would average all values."""
    T, S = seen.shape[1:]
    same_row = mask.q_segments is mask.k_segments and mask.k_index is None and T <= S
    if same_row and mask.visible is None:
        # Every query sees its own token.
        return out
    return jnp.where(jnp.any(seen, axis=2)[:, :, None, None], out, jnp.zeros_like(out))


def _cudnn(q: Array, k: Array, v: Array, mask: Mask, options: Options) -> Array:
    run = partial(jax.nn.dot_product_attention, scale=options.scale, implementation="cudnn")
    if mask.features() <= {"causal", "window"} and q.shape[1] == k.shape[1]:
        # With native flags the kernel reads no [B, T, S] mask.
        window = None
        if mask.window:
            window = (mask.window - 1, 0 if mask.causal else mask.window - 1)
        return run(q, k, v, is_causal=mask.causal, local_window_size=window)
    seen = dense(mask, q.shape[1], k.shape[1])
    if seen is None:
        return run(q, k, v)
    shape = (q.shape[0], q.shape[2], q.shape[1], k.shape[1])
    out = run(q, k, v, mask=jnp.broadcast_to(seen[:, None], shape))
    return _zero_where_unseen(out, mask, seen)


def _blockwise(q: Array, k: Array, v: Array, mask: Mask, options: Options) -> Array:
    return blockwise_attention(q, k, v, mask, **_of_scores(options), bias=options.bias)


def _splash(q: Array, k: Array, v: Array, mask: Mask, options: Options) -> Array:
    return splash_attention(q, k, v, mask, **_of_scores(options))


def _of_scores(options: Options) -> dict[str, Any]:
    return {"scale": options.scale, "softcap": options.softcap, "sinks": options.sinks}


_FLOATS = ("float32", "bfloat16", "float16")
_WITH_FLOAT64 = (*_FLOATS, "float64")
_ANYWHERE = ("cpu", "gpu", "tpu")
BACKENDS = {
    "xla": Backend(
        run=_xla,
        masks=ALL_MASKS,
        softcap=True,
        dtypes=_WITH_FLOAT64,
        platforms=_ANYWHERE,
        sinks=True,
        value_dim=True,
        bias=True,
        dropout=True,
    ),
    "dot_product": Backend(
        run=_dot_product,
        masks=ALL_MASKS,
        softcap=False,
        dtypes=_FLOATS,
        platforms=_ANYWHERE,
    ),
    "blockwise": Backend(
        run=_blockwise,
        masks=ALL_MASKS,
        softcap=True,
        dtypes=_WITH_FLOAT64,
        platforms=_ANYWHERE,
        fused=True,
        local=True,
        sinks=True,
        value_dim=True,
        bias=True,
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
