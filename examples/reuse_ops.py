"""Your own training loop in plain JAX, with pieces of ``llm_jax.ops``: a two-layer model learns to
repeat a sequence.

    python examples/reuse_ops.py

A few seconds on two CPU cores; the loss falls from above ln 16 = 2.77 to nearly 0.
"""

import jax
import jax.numpy as jnp

from llm_jax.ops import Mask, attention, chunked_cross_entropy, gated_mlp, rms_norm, rope

# Letters as in llm_jax.types. A row is HALF tokens, then the same again.
V, D, N, H, F = 16, 32, 4, 16, 64
HALF, B, L = 8, 32, 2
NORMS = {"norm1": (D,), "norm2": (D,)}
KERNELS = {"qkv": (D, 3, N, H), "out": (N, H, D), "gate": (D, F), "up": (D, F), "down": (F, D)}


def init(key):
    keys = iter(jax.random.split(key, 1 + L * len(KERNELS)))
    params = {
        "embed": jax.random.normal(next(keys), (V, D)) / V**0.5,
        "norm": jnp.ones(D),
        "layers": [],
    }
    for _ in range(L):
        layer = {name: jnp.ones(shape) for name, shape in NORMS.items()}
        for name, shape in KERNELS.items():
            layer[name] = jax.random.normal(next(keys), shape) / shape[0] ** 0.5
        params["layers"].append(layer)
    return params


def loss(params, tokens):
    x = params["embed"][tokens]
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    for p in params["layers"]:
        qkv = jnp.einsum("btd,dcnh->cbtnh", rms_norm(x, p["norm1"]), p["qkv"])
        q, k = rope(qkv[0], positions), rope(qkv[1], positions)
        y = attention(q, k, qkv[2], Mask(causal=True))
        x = x + jnp.einsum("btnh,nhd->btd", y, p["out"])
        x = x + gated_mlp(rms_norm(x, p["norm2"]), p["gate"], p["up"], p["down"])
    hidden = rms_norm(x, params["norm"])
    targets = jnp.roll(tokens, -1, axis=1)
    # Only the second half can be known.
    counted = (positions >= HALF - 1) & (positions < 2 * HALF - 1)
    out = chunked_cross_entropy(hidden, params["embed"], targets, counted, chunk=V // 2)
    return out.total / counted.sum()


@jax.jit
def step(params, velocity, i):
    half = jax.random.randint(jax.random.fold_in(jax.random.key(1), i), (B, HALF), 0, V)
    value, grads = jax.value_and_grad(loss)(params, jnp.concatenate([half, half], axis=1))
    velocity = jax.tree.map(lambda v, g: 0.99 * v + 0.01 * g**2, velocity, grads)
    params = jax.tree.map(
        lambda p, g, v: p - 3e-3 * g / (jnp.sqrt(v) + 1e-3), params, grads, velocity
    )
    return params, velocity, value


def main(steps=200):
    params = init(jax.random.key(0))
    velocity = jax.tree.map(jnp.zeros_like, params)
    losses = []
    for i in range(steps):
        params, velocity, value = step(params, velocity, i)
        losses.append(float(value))
        if i % 20 == 0 or i == steps - 1:
            print(f"step {i:4d}  loss {losses[-1]:.3f}")
    return losses


if __name__ == "__main__":
    main()
