"""Our shards and loader, feeding a model that knows nothing of this project.

    python examples/our_loader.py runs/loader

From the checkout's folder; half a minute on two CPU cores. The model is a table of which token
follows which: its loss falls from ln 512 = 6.2 to below 5. A batch is numpy arrays, and a pure
function of seed and step: to go on after a stop, go on from the step.
"""

# %% Text to shards, once
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import optax

import llm_jax
from llm_jax.data.loading.loader import Loader

VOCAB, T, B = 512, 128, 16


def make_shards(out):
    text = ("README.md", "docs/concepts")
    llm_jax.train_tokenizer(text, out / "tokenizer", vocab_size=VOCAB)
    llm_jax.prepare(text, out / "tokenizer", out / "shards", block_size=T, workers=1)
    return out / "shards"


# %% Somebody else's model and step
def loss(table, ids, targets, counted):
    nats = optax.softmax_cross_entropy_with_integer_labels(table[ids], targets)
    return jnp.sum(nats * counted) / jnp.sum(counted)


optimizer = optax.adam(0.1)


@jax.jit
def step(table, state, ids, targets, counted):
    value, gradient = jax.value_and_grad(loss)(table, ids, targets, counted)
    updates, state = optimizer.update(gradient, state)
    return optax.apply_updates(table, updates), state, value


# %% The loop
def main(out, steps=40):
    loader = Loader([make_shards(Path(out))], seq_length=T, batch_size=B, seed=0)
    table = jnp.zeros((VOCAB, VOCAB))
    state = optimizer.init(table)
    losses = []
    for i in range(steps):
        batch = loader.batch(i)
        counted = batch.loss_mask.astype("float32")
        table, state, value = step(table, state, batch.inputs.ids, batch.targets, counted)
        losses.append(float(value))
    loader.close()
    print(f"loss {losses[0]:.2f} at first, {losses[-1]:.2f} after {steps} steps")
    return losses


if __name__ == "__main__":
    main(sys.argv[1])
