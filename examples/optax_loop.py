"""Our ``Model`` inside a plain optax loop: no trainer, no shards, no checkpoints of this project.

    python examples/optax_loop.py

A few seconds on two CPU cores: a one-layer model learns to count on from any number, and the loss
falls from about ln 16 = 2.77 to nearly 0.
"""

# %% A model is a bundle of pure functions: init, apply, logits
import jax
import jax.numpy as jnp
import optax

from llm_jax.config import ModelConfig, override
from llm_jax.models import build, rows_of

V, B, T = 16, 32, 12
model = build(
    override(
        ModelConfig(),
        {
            "vocab_size": V,
            "num_layers": 1,
            "embed_dim": 32,
            "attention.num_heads": 2,
            "mlp.hidden_dim": 64,
            "max_length": T,
        },
    )
)
optimizer = optax.adamw(1e-2)


# %% A step
@jax.jit
def step(params, state, key):
    first = jax.random.randint(key, (B, 1), 0, V)
    rows = (first + jnp.arange(T + 1)[None]) % V

    def loss(params):
        batch = rows_of(rows[:, :-1], jnp.full(B, T))
        logits = model.logits(params, model.apply(params, batch).hidden)
        return optax.softmax_cross_entropy_with_integer_labels(logits, rows[:, 1:]).mean()

    value, gradient = jax.value_and_grad(loss)(params)
    updates, state = optimizer.update(gradient, state, params)
    return optax.apply_updates(params, updates), state, value


# %% The loop
def main(steps=60):
    params = model.init(jax.random.key(0))
    state, losses = optimizer.init(params), []
    for i in range(steps):
        params, state, value = step(params, state, jax.random.key(i))
        losses.append(float(value))
    print(f"loss {losses[0]:.3f} at first, {losses[-1]:.4f} after {steps} steps")
    return losses


if __name__ == "__main__":
    main()
