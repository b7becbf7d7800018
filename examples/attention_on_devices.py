"""Our attention under ``shard_map`` on 8 devices, with rows and heads split over a mesh of yours.

    python examples/attention_on_devices.py

A few seconds on two CPU cores, which stand in for 8 devices. The result and the gradient are those
of one device: packed documents, grouped heads and the window included.
"""

import os
from functools import partial

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")

import jax
import jax.numpy as jnp
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from llm_jax.ops import Mask, attention

B, T, N, K, H = 4, 64, 8, 4, 16


# %% Each device attends with its rows and its heads, as if they were all there are
def local(q, k, v, segments):
    mask = Mask(window=16, q_segments=segments, k_segments=segments)
    return attention(q, k, v, mask, backend="blockwise")


def sharded(mesh):
    heads = P("rows", None, "heads", None)
    specs = (heads, heads, heads, P("rows", None))
    return jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=heads)


# %% The same on one device and on eight
def loss(attend, q, k, v, segments):
    out = attend(q, k, v, segments)
    return jnp.square(out).sum(), out


def main():
    mesh = jax.make_mesh((2, 4), ("rows", "heads"), axis_types=(AxisType.Auto,) * 2)
    keys = jax.random.split(jax.random.key(0), 3)
    q = jax.random.normal(keys[0], (B, T, N, H))
    k = jax.random.normal(keys[1], (B, T, K, H))
    v = jax.random.normal(keys[2], (B, T, K, H))
    segments = jnp.broadcast_to(1 + jnp.arange(T)[None, :] // 24, (B, T))
    found = {}
    for name, attend in {"one device": local, "eight": sharded(mesh)}.items():
        step = jax.jit(jax.grad(partial(loss, attend), has_aux=True))
        found[name] = step(q, k, v, segments)
    for name, one, eight in zip(("gradient", "output"), *found.values()):
        count = len(eight.sharding.device_set)
        print(f"{name} on {count} devices: differs by {jnp.abs(one - eight).max():.1e} at most")
    return found


if __name__ == "__main__":
    main()
