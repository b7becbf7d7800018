"""Measured memory bandwidth of the device, the other bound of a roofline beside
``flops.measure_matmul``.
"""

from __future__ import annotations

import time

import jax
import jax.numpy as jnp


def measure_bandwidth(megabytes: int = 256, repeats: int = 5) -> float:
    """Bytes per second read and written by an elementwise pass over an array larger than
    any cache.
    """
    x = jnp.ones((megabytes * 2**18,), jnp.float32)
    touch = jax.jit(lambda a: a + 1)
    jax.block_until_ready(touch(x))
    best = float("inf")
    for _ in range(repeats):
        started = time.perf_counter()
        jax.block_until_ready(touch(x))
        best = min(best, time.perf_counter() - started)
    return 2 * x.nbytes / best
