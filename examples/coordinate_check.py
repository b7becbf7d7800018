"""The coordinate check of muP: how much outputs change in a few steps, at growing widths.

    python examples/coordinate_check.py

Half a minute on two CPU cores. With the standard parametrization the same learning rate moves a
wider model further; with muP (``model.parametrization``) all widths move as far, so that a learning
rate that is good for a narrow model is good for a wide one.
"""

# %% One model, at any width
import jax
import jax.numpy as jnp
import optax

from llm_jax.config import ModelConfig, override
from llm_jax.models import build, rows_of
from llm_jax.training.update_rules import adam_rate_scales, adamw

V, B, T, BASE = 64, 8, 16, 64
IDS = jax.random.randint(jax.random.key(1), (B, T + 1), 0, V)


def make(width, parametrization):
    shape = {"vocab_size": V, "num_layers": 1, "max_length": T, "embed_dim": width}
    heads = {"attention.num_heads": width // 16, "mlp.hidden_dim": 2 * width}
    config = override(ModelConfig(), {**shape, **heads, "parametrization": parametrization})
    if parametrization == "mup":
        config = override(config, {"parametrization.base_width": BASE})
    return build(config)


# %% How far the mean coordinate of the hidden states and of the logits has moved after some steps
def moved(width, parametrization, rate=1e-3, steps=4):
    model = make(width, parametrization)
    rule = adamw(rate, rate_scales=adam_rate_scales(model.specs, model.config.growth))
    batch = rows_of(IDS[:, :-1], jnp.full(B, T))

    def loss(params):
        hidden = model.apply(params, batch).hidden
        logits = model.logits(params, hidden)
        found = optax.softmax_cross_entropy_with_integer_labels(logits, IDS[:, 1:])
        return found.mean(), (hidden, logits)

    @jax.jit
    def step(params, state):
        gradient, outputs = jax.grad(loss, has_aux=True)(params)
        updates, state = rule.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, outputs

    params = jax.jit(model.init)(jax.random.key(0))
    state = jax.jit(rule.init)(params)
    outputs = []
    for _ in range(steps + 1):
        params, state, found = step(params, state)
        outputs.append(found)
    return [float(jnp.abs(a - b).mean()) for a, b in zip(outputs[-1], outputs[0])]


# %% The table
def main(widths=(64, 128, 256, 512)):
    table = {kind: [moved(width, kind) for width in widths] for kind in ("standard", "mup")}
    print(f"{'width':>24}" + "".join(f"{width:>9}" for width in widths))
    for kind, found in table.items():
        for i, name in enumerate(("hidden", "logits")):
            print(f"{kind:>12} {name:>11}" + "".join(f"{changes[i]:>9.4f}" for changes in found))
    return table


if __name__ == "__main__":
    main()
