"""Attention masks as data: ``Mask`` describes one, and ``dense`` materializes it."""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp
from jax import Array


@dataclass(frozen=True)
class Mask:
    """Which keys a query may see.

    A key must satisfy every given condition; ``mutual`` relaxes ``causal``.

    Attributes:
        causal: only keys at or before the query.
        window: only keys less than this many positions away from the query; 0 is no window.
        q_segments: int [B, T]; only keys of the query's own segment. Padding is segment 0.
        k_segments: int [B, S].
        q_mutual: int [B, T]; tokens of the same id, not 0, see each other whatever their order.
        k_mutual: int [B, S].
        q_index: int [B, T], position of each query; None is 0, 1, 2, ...
        k_index: int [B, S], position of each key; None is 0, 1, 2, ...
    """

    causal: bool = True
    window: int = 0
    q_segments: Array | None = None
    k_segments: Array | None = None
    q_mutual: Array | None = None
    k_mutual: Array | None = None
    q_index: Array | None = None
    k_index: Array | None = None

    def __post_init__(self) -> None:
        for name in ("segments", "mutual"):
            q = getattr(self, f"q_{name}")
            k = getattr(self, f"k_{name}")
            if (q is None) != (k is None):
                raise ValueError(f"the mask has q_{name} or k_{name} alone; give both, or neither")

    def features(self) -> frozenset[str]:
        """Names of the conditions in use; a backend declares those that it honours."""
        used = {
            "causal": self.causal,
            "window": self.window > 0,
            "segments": self.q_segments is not None,
            "mutual": self.q_mutual is not None,
            "offset": self.q_index is not None or self.k_index is not None,
        }
        return frozenset(name for name, on in used.items() if on)

    def in_order(self) -> bool:
        """Whether query t of a row sees at most the keys 0 to t."""
        return (
            self.causal and self.q_mutual is None and self.q_index is None and self.k_index is None
        )

    def part(self, queries: slice, keys: slice) -> Mask:
        """The mask of a part of the queries and keys. The mask must be ``in_order``."""
        assert self.in_order()

        def cut(x: Array | None, part: slice) -> Array | None:
            return None if x is None else x[:, part]

        segments = (cut(self.q_segments, queries), cut(self.k_segments, keys))
        if queries == keys:
            return Mask(self.causal, self.window, *segments)
        return Mask(
            self.causal,
            self.window,
            *segments,
            q_index=jnp.arange(queries.start, queries.stop)[None, :],
            k_index=jnp.arange(keys.start, keys.stop)[None, :],
        )


def dense(mask: Mask, query_length: int, key_length: int) -> Array | None:
    """The mask as bool [B or 1, T, S], True where the query sees the key; None if it sees all."""
    q = jnp.arange(query_length)[None, :] if mask.q_index is None else mask.q_index
    k = jnp.arange(key_length)[None, :] if mask.k_index is None else mask.k_index
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
    if mask.q_segments is not None and mask.k_segments is not None:
        same = mask.q_segments[:, :, None] == mask.k_segments[:, None, :]
        seen = same if seen is None else seen & same
    return seen
