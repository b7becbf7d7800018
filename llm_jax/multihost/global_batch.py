"""Global batches from the rows of each process, and the consensus that travels with them: the
fingerprint of every global batch, and whether a process was asked to stop.
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
    """The consensus of all processes about one step.

    Attributes:
        fingerprint: of the global batch.
        signum: the signal by which a process was asked to stop, or 0.
    """

    fingerprint: int
    signum: int


class Feed:
    """Makes global batches from each process's rows, placed on the mesh.

    Args:
        mesh: of all processes.
        batch_size: rows of a global batch.
        length: tokens of a row.

    Attributes:
        rows: the rows of the global batch that this process's devices hold, ascending. With tensor
            parallelism over processes, several processes hold the same rows.

    Raises:
        ConfigError: ``batch_size`` does not divide over the mesh.
    """

    def __init__(self, mesh: Mesh, batch_size: int, length: int) -> None:
        self.mesh = mesh
        self._size = batch_size
        self._sharding = batch_sharding(mesh, batch_size)
        indices = self._sharding.addressable_devices_indices_map((batch_size, length)).values()
        every_row = np.arange(batch_size)
        self.rows = np.unique(
            np.concatenate([every_row[index[0]] for index in indices if index is not None])
        )
        self._by_row = NamedSharding(mesh, PartitionSpec(self._sharding.spec[0], None))
        # Processes that hold the same row give the same values, and the array has the row once.
        self._sum = jax.jit(
            lambda x: jnp.sum(x, axis=0, dtype=jnp.uint32),
            out_shardings=NamedSharding(mesh, PartitionSpec()),
        )

    def put(self, batch: Params) -> Params:
        """The global batch, as sharded arrays; ``batch`` holds this process's rows."""
        if jax.process_count() == 1:
            return jax.device_put(batch, self._sharding)
        return jax.tree.map(lambda x: self._global(np.asarray(x), self._sharding), batch)

    def _global(self, x: np.ndarray, sharding: NamedSharding) -> Array:
        def local_part(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index is not None, "jax asks for the parts of local devices only"
            rows, *others = index
            mine = np.searchsorted(self.rows, np.arange(self._size)[rows])
            return x[mine][:, *others]

        return jax.make_array_from_callback((self._size, *x.shape[1:]), sharding, local_part)

    def start_consensus(self, row_fingerprints: np.ndarray, stop: Sequence[int]) -> Array | Heard:
        """Start to sum the fingerprints of all rows and the signals of all processes.

        All processes get the same sum at the same step, so they stop together. A single process
        needs no sum.

        Args:
            row_fingerprints: uint64 [rows], of this process's rows.
            stop: the signals that this process has received.

        Returns:
            For ``finish_consensus``: uint32 [10] that is being computed, the sums of the eight
            bytes of fingerprints and of the rows whose process received each signal.
        """
        if jax.process_count() == 1:
            return Heard(int(row_fingerprints.sum(dtype=np.uint64)), stop[0] if stop else 0)
        received = np.array([signum in stop for signum in SIGNALS], np.uint8)
        flags = np.tile(received, (len(row_fingerprints), 1))
        # Summed byte by byte: the sum of a byte over 2**24 rows fits 32 bits.
        words = row_fingerprints.astype("<u8").view(np.uint8).reshape(-1, 8)
        return self._sum(self._global(np.concatenate([words, flags], axis=1), self._by_row))


def finish_consensus(started: Array | Heard) -> Heard:
    """Wait for the consensus that ``start_consensus`` started."""
    if isinstance(started, Heard):
        return started
    sums = [int(total) for total in np.asarray(started)]
    fingerprint = sum(total << (8 * place) for place, total in enumerate(sums[:8])) % 2**64
    received = (int(signum) for signum, rows in zip(SIGNALS, sums[8:]) if rows)
    return Heard(fingerprint, next(received, 0))
