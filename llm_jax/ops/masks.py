"""Attention masks as data: ``Mask`` describes one, and ``dense`` materializes it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

_STATIC = ("causal", "window")


@dataclass(frozen=True)
class Mask:
    """Which keys a query may see.

    A key must satisfy every given condition; ``mutual`` relaxes ``causal``. A mask is a pytree of
    its arrays: it goes through ``jit``, ``scan`` and ``shard_map`` as an argument, with ``causal``
    and ``window`` static.

    Where neither queries nor keys have positions, the last query stands at the last key: a single
    query over the keys of its row sees them all.

    Attributes:
        causal: only keys at or before the query.
        window: only keys less than this many positions away from the query; 0 is no window.
        q_segments: int [B, T]; only keys of the query's own segment. Padding is segment 0.
        k_segments: int [B, S].
        q_mutual: int [B, T]; tokens of the same id, not 0, see each other whatever their order.
        k_mutual: int [B, S].
        q_index: int [B, T] or [T], position of each query; None is S - T, S - T + 1, ..., S - 1.
        k_index: int [B, S] or [S], position of each key; None is 0, 1, 2, ...
        visible: bool [B or 1, T, S], True where the query may see the key.
    """

    causal: bool = True
    window: int = 0
    q_segments: Array | None = None
    k_segments: Array | None = None
    q_mutual: Array | None = None
    k_mutual: Array | None = None
    q_index: Array | None = None
    k_index: Array | None = None
    visible: Array | None = None

    def __post_init__(self) -> None:
        for name in ("segments", "mutual"):
            q = getattr(self, f"q_{name}")
            k = getattr(self, f"k_{name}")
            if (q is None) != (k is None):
                raise ValueError(f"the mask has q_{name} or k_{name} alone; give both, or neither")
        if self.k_index is not None and self.q_index is None:
            raise ValueError("the mask has k_index alone; give q_index, where the queries stand")

    def features(self) -> frozenset[str]:
        """Names of the conditions in use; a backend declares those that it honours."""
        used = {
            "causal": self.causal,
            "window": self.window > 0,
            "segments": self.q_segments is not None,
            "mutual": self.q_mutual is not None,
            "offset": self.q_index is not None or self.k_index is not None,
            "array": self.visible is not None,
        }
        return frozenset(name for name, on in used.items() if on)

    def in_order(self) -> bool:
        """Whether query t of a row of as many keys sees at most the keys 0 to t."""
        return (
            self.causal and self.q_mutual is None and self.q_index is None and self.k_index is None
        )

    def part(self, queries: slice, keys: slice) -> Mask:
        """The mask of a part of the queries and keys. The mask must be ``in_order``."""
        assert self.in_order()

        def cut(x: Array | None, part: slice) -> Array | None:
            return None if x is None else x[:, part]

        segments = (cut(self.q_segments, queries), cut(self.k_segments, keys))
        visible = None if self.visible is None else self.visible[:, queries, keys]
        if queries == keys:
            return Mask(self.causal, self.window, *segments, visible=visible)
        return Mask(
            self.causal,
            self.window,
            *segments,
            q_index=jnp.arange(queries.start, queries.stop)[None, :],
            k_index=jnp.arange(keys.start, keys.stop)[None, :],
            visible=visible,
        )


_ARRAYS = tuple(field.name for field in fields(Mask) if field.name not in _STATIC)


def _flatten(mask: Mask) -> tuple[list[tuple[Any, Any]], tuple[bool, int]]:
    arrays = [(jax.tree_util.GetAttrKey(name), getattr(mask, name)) for name in _ARRAYS]
    return arrays, (mask.causal, mask.window)


def _unflatten(static: tuple[bool, int], arrays: Iterable[Any]) -> Mask:
    # Not by the constructor, which would check what JAX puts in the place of arrays.
    mask = object.__new__(Mask)
    for name, value in (*zip(_STATIC, static), *zip(_ARRAYS, arrays)):
        object.__setattr__(mask, name, value)
    return mask


jax.tree_util.register_pytree_with_keys(Mask, _flatten, _unflatten)


def as_mask(mask: Mask | Array | None, rows: int, queries: int, keys: int) -> Mask:
    """What a caller gave as a mask of B rows of T queries and S keys.

    Args:
        mask: a ``Mask``; None where every query sees every key; or a bool array [T, S], [B, T, S]
            or [B, 1, T, S], each axis of which may be 1, True where the query sees the key.
        rows: B.
        queries: T.
        keys: S.

    Raises:
        ValueError: the array is not bool, or has another shape.
    """
    if mask is None:
        return Mask(causal=False)
    if isinstance(mask, Mask):
        return mask
    if not hasattr(mask, "dtype") or mask.dtype != bool:
        raise ValueError(
            f"attention mask is {getattr(mask, 'dtype', type(mask).__name__)}; it must be a Mask,"
            " None or a bool array, True where the query sees the key (numbers to add to the"
            " scores go in bias)"
        )
    shape = mask.shape
    visible = mask[None] if mask.ndim == 2 else mask
    if mask.ndim == 4 and shape[1] == 1:
        visible = mask[:, 0]
    wanted = (rows, queries, keys)
    if visible.ndim != 3 or any(n not in (1, m) for n, m in zip(visible.shape, wanted)):
        raise ValueError(
            f"attention mask {shape} is not [T, S], [B, T, S] or [B, 1, T, S] of B {rows},"
            f" T {queries} and S {keys}, each 1 or as given (a mask of each head goes in bias, with"
            " -inf where the query does not see the key)"
        )
    return Mask(causal=False, visible=jnp.broadcast_to(visible, (visible.shape[0], queries, keys)))


def positions(mask: Mask, query_length: int, key_length: int) -> tuple[Array, Array]:
    """Where the queries and the keys stand: int [B or 1, T] and [B or 1, S].

    Raises:
        ValueError: there are more queries than keys, without positions.
    """
    if mask.q_index is None and query_length > key_length and (mask.causal or mask.window):
        raise ValueError(
            f"a mask with causal={mask.causal} and window={mask.window} has {query_length} queries"
            f" of {key_length} keys; give it q_index, where each query stands among the keys, or"
            " causal=False without a window (or swap axes: q, k and v have the heads after the"
            " positions)"
        )
    first = key_length - query_length
    q = jnp.arange(first, key_length) if mask.q_index is None else jnp.asarray(mask.q_index)
    k = jnp.arange(key_length) if mask.k_index is None else jnp.asarray(mask.k_index)
    return q if q.ndim == 2 else q[None, :], k if k.ndim == 2 else k[None, :]


def dense(mask: Mask, query_length: int, key_length: int) -> Array | None:
    """The mask as bool [B or 1, T, S], True where the query sees the key; None if it sees all."""
    seen = mask.visible
    if mask.causal or mask.window:
        seen = _both(seen, _by_position(mask, query_length, key_length))
    if mask.q_segments is not None and mask.k_segments is not None:
        same = mask.q_segments[:, :, None] == mask.k_segments[:, None, :]
        seen = _both(seen, same)
    return seen


def _both(a: Array | None, b: Array) -> Array:
    return b if a is None else a & b


def _by_position(mask: Mask, query_length: int, key_length: int) -> Array:
    """What ``causal``, ``mutual`` and ``window`` allow: bool [B or 1, T, S]."""
    q, k = positions(mask, query_length, key_length)
    distance = q[:, :, None] - k[:, None, :]
    seen = None
    if mask.causal:
        seen = distance >= 0
        if mask.q_mutual is not None and mask.k_mutual is not None:
            same_group = mask.q_mutual[:, :, None] == mask.k_mutual[:, None, :]
            seen = seen | (same_group & (mask.q_mutual != 0)[:, :, None])
    if mask.window:
        near = jnp.abs(distance) < mask.window
        seen = near if seen is None else seen & near
    assert seen is not None
    return seen


def check_mask(mask: Mask, rows: int, queries: int, keys: int) -> None:
    """Raises ValueError where an array of the mask is not of B rows of T queries or S keys."""
    for name in ("segments", "mutual", "index"):
        for side, length in (("q", queries), ("k", keys)):
            array = getattr(mask, f"{side}_{name}")
            if array is None:
                continue
            shape = array.shape
            fits = shape[-1:] == (length,) and shape[:-1] in (((), (1,), (rows,)))
            if name != "index" and len(shape) == 1:
                fits = False
            if not fits:
                letters = "[B, T]" if side == "q" else "[B, S]"
                raise ValueError(
                    f"the mask's {side}_{name} has shape {shape}; it must be {letters} of {rows}"
                    f" rows and {length} {'queries' if side == 'q' else 'keys'}"
                )
    if mask.visible is not None and mask.visible.shape not in (
        (1, queries, keys),
        (rows, queries, keys),
    ):
        raise ValueError(
            f"the mask's visible has shape {mask.visible.shape}; it must be [B or 1, T, S] of"
            f" {rows} rows, {queries} queries and {keys} keys"
        )
