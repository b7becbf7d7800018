"""Feeding the mesh: which rows this process gives of every global batch, and what the processes
tell each other along with them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from llm_jax.multihost.signals import SIGNALS
from llm_jax.sharding import batch_sharding
from llm_jax.types import Params


class Heard(NamedTuple):
    """What all processes said of one step. fingerprint: of the global batch. signum: asked to stop
    by this signal, or 0.
    """

    fingerprint: int
    signum: int


class Feed:
    """Global batches out of each process's rows, placed where the mesh wants them whatever process
    owns which device.

    rows: the rows of the global batch that this process's devices hold, ascending. With tensor
    parallelism over processes several hold the same.
    """

    def __init__(self, mesh: Mesh, batch_size: int, length: int) -> None:
        """ConfigError when ``batch_size`` does not divide over the mesh."""
        self.mesh, self._size = mesh, batch_size
        self._sharding = batch_sharding(mesh, batch_size)
        indices = self._sharding.addressable_devices_indices_map((batch_size, length)).values()
        self.rows = np.unique(
            np.concatenate([np.arange(batch_size)[index[0]] for index in indices])
        )
        by_row = NamedSharding(mesh, PartitionSpec(self._sharding.spec[0], None))
        self._said = lambda x: self._global(x, by_row)
        # Of processes that hold the same row each says the same, and the array has it once.
        self._sum = jax.jit(
            lambda x: jnp.sum(x, axis=0, dtype=jnp.uint32),
            out_shardings=NamedSharding(mesh, PartitionSpec()),
        )

    def put(self, batch: Params) -> Params:
        """The global batch, of which ``batch`` holds this process's rows."""
        if jax.process_count() == 1:
            return jax.device_put(batch, self._sharding)
        return jax.tree.map(lambda x: self._global(np.asarray(x), self._sharding), batch)

    def _global(self, x: np.ndarray, sharding: NamedSharding) -> Array:
        def piece(index: tuple[slice, ...]) -> np.ndarray:
            mine = np.searchsorted(self.rows, np.arange(self._size)[index[0]])
            return x[mine][:, *index[1:]]

        return jax.make_array_from_callback((self._size, *x.shape[1:]), sharding, piece)

    def start_consensus(self, row_fingerprints: np.ndarray, stop: Sequence[int]) -> Array | Heard:
        """Starts the sum, over the global batch, of the rows' fingerprints and of how many rows'
        process got a signal: uint32 [10].

        All processes get the same sum at the same step, so that they stop together. One process
        alone needs no sum.
        """
        if jax.process_count() == 1:
            return Heard(int(row_fingerprints.sum(dtype=np.uint64)), stop[0] if stop else 0)
        flags = np.tile(
            np.array([s in stop for s in SIGNALS], np.uint8), (len(row_fingerprints), 1)
        )
        # Byte by byte: their sums over 2**24 rows fit where 64 bits do not.
        words = row_fingerprints.astype("<u8").view(np.uint8).reshape(-1, 8)
        return self._sum(self._said(np.concatenate([words, flags], axis=1)))


def finish_consensus(said: Array | Heard) -> Heard:
    """Waits for what ``start_consensus`` started."""
    if isinstance(said, Heard):
        return said
    sums = [int(n) for n in np.asarray(said)]
    value = sum(n << (8 * i) for i, n in enumerate(sums[:8])) % 2**64
    return Heard(value, next((int(s) for s, n in zip(SIGNALS, sums[8:]) if n), 0))
