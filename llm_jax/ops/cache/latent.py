"""The cache of one layer of latent attention (DeepSeek-V2, section 2.1.2)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from llm_jax.ops.cache.chunk import Chunk
from llm_jax.ops.cache.dense import InOrder
from llm_jax.ops.cache.key_value import write_vectors
from llm_jax.ops.cache.paged import Moves, Paged, copied
from llm_jax.ops.cache.quantized import Quantized, Vectors, as_floats, vector_axes
from llm_jax.ops.cache.ring import Ring

_SLOTS = 1


@partial(
    jax.tree_util.register_dataclass, data_fields=["latents", "rotated"], meta_fields=["layout"]
)
@dataclass(frozen=True)
class LatentCache:
    """Latents, of which a layer makes the keys and values of all heads.

    Attributes:
        latents: [B, S, C], or [pages, page, C]; floats or int8 (``ops.cache.quantized``).
        rotated: [B, S, R], or [pages, page, R], the rotated part of the keys, which all heads
            share; never in int8.
        layout: static, which token is in which of the S slots, or in which page.
    """

    latents: Vectors
    rotated: Array
    layout: InOrder | Ring | Paged

    @property
    def slots(self) -> int:
        """S."""
        return self.rotated.shape[_SLOTS]

    def slots_read(self, chunk: Chunk) -> int:
        """How many keys ``write`` gives back where ``positions`` is None."""
        return self.layout.slots_read(chunk) if isinstance(self.layout, Paged) else self.slots

    def positions(self, chunk: Chunk) -> Array | None:
        """Positions of the latents that ``write`` gives back; None if they are 0, 1, 2, …"""
        return self.layout.positions(chunk, self.slots)

    def write(
        self, chunk: Chunk, latent: Array, rotated: Array
    ) -> tuple[LatentCache, Array, Array]:
        """The cache with a chunk written, and the latents that its queries attend to.

        Args:
            chunk: the call.
            latent: [B, T, C], of the chunk's tokens.
            rotated: [B, T, R].

        Returns:
            The written cache, latents [B, S', C] and rotated parts [B, S', R]. Latents in int8 are
            what is left of them, also those of the chunk.
        """
        latents, read = write_vectors(self.layout, self.latents, latent, chunk, _SLOTS)
        parts, parts_read = self.layout.write(self.rotated, rotated, chunk, _SLOTS)
        written = replace(self, latents=latents, rotated=parts)
        if chunk.begin:
            kept = as_floats(read, latent.dtype) if isinstance(read, Quantized) else latent
            return written, kept, rotated
        return written, as_floats(read, latent.dtype), parts_read.astype(rotated.dtype)

    def gather(self, rows: Array) -> LatentCache:
        """The cache whose row b is row ``rows[b]`` of this one. rows: int [B']."""
        return jax.tree.map(lambda a: jnp.take(a, rows, axis=0), self)

    def truncate(self, most: int) -> LatentCache:
        """The cache after up to ``most`` tokens of each row were taken back: what follows is
        written over them.

        Raises:
            ValueError: a ring does not keep what queries would see then.
        """
        self.layout.check_rollback(most)
        return self

    def moved(self, moves: Moves) -> LatentCache:
        """The cache with pages copied; only of a paged one."""
        return copied(self, moves)

    @property
    def axes(self) -> LatentCache:
        """Logical axes in the place of each array. Latents are of all heads."""
        names = ("batch", None, None)
        return replace(
            self,
            latents=vector_axes(names, self.latents),
            rotated=names,  # type: ignore[arg-type]
        )
