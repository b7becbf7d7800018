"""Our ``Model`` as a layer of a module of Flax NNX, and of one of equinox.

    pip install equinox && python examples/inside_modules.py

A few seconds on two CPU cores. Each module reads our hidden states with a head of its own, and its
gradient reaches our parameters.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from flax import nnx

from llm_jax.config import ModelConfig, override
from llm_jax.models import build, rows_of

SIZES = {"vocab_size": 16, "num_layers": 1, "embed_dim": 32, "max_length": 8}
HEADS = {"attention.num_heads": 2, "mlp.hidden_dim": 64}
MODEL = build(override(ModelConfig(), SIZES | HEADS))
IDS = jnp.array([[1, 2, 3, 4, 5, 6, 7, 8]])


def hidden(params, ids):
    batch = rows_of(ids, jnp.full(ids.shape[0], ids.shape[1]))
    return MODEL.apply(params, batch).hidden


# %% Flax NNX: parameters are variables, so that nnx.grad and nnx.Optimizer find them
class InNnx(nnx.Module):
    def __init__(self, rngs):
        self.ours = nnx.data(jax.tree.map(nnx.Param, MODEL.init(rngs.params())))
        self.score = nnx.Linear(32, 1, rngs=rngs)

    def __call__(self, ids):
        params = nnx.to_pure_dict(nnx.state(self.ours))
        return self.score(hidden(params, ids).mean(axis=1))


# %% equinox: parameters are a field
class InEquinox(eqx.Module):
    ours: dict
    score: eqx.nn.Linear

    def __init__(self, key):
        self.ours = MODEL.init(key)
        self.score = eqx.nn.Linear(32, 1, key=key)

    def __call__(self, ids):
        return jax.vmap(self.score)(hidden(self.ours, ids).mean(axis=1))


# %% The same loss and its gradient in both
def loss(module, ids):
    return jnp.square(module(ids) - 1).mean()


def main():
    in_nnx = InNnx(nnx.Rngs(params=0))
    in_equinox = InEquinox(jax.random.key(0))
    gradients = {
        "NNX": nnx.state(nnx.jit(nnx.grad(loss))(in_nnx, IDS)),
        "equinox": eqx.filter_jit(eqx.filter_grad(loss))(in_equinox, IDS),
    }
    sizes = {}
    for name, gradient in gradients.items():
        sizes[name] = [float(jnp.abs(g).max()) for g in jax.tree.leaves(gradient)]
        print(
            f"{name}: gradients of {len(sizes[name])} arrays, the smallest {min(sizes[name]):.1e}"
        )
    return sizes


if __name__ == "__main__":
    main()
