"""What devices send one another for a layer, by kind and number: one gather too many in a layer
fails.
"""

import jax
import jax.numpy as jnp
import pytest

from llm_jax.config import Config
from llm_jax.config.overrides import override
from llm_jax.plan.hlo import collectives, summed
from llm_jax.sharding import row_sharding
from llm_jax.training.build import build
from llm_jax.training.step import jit_train_step, make_train_step
from llm_jax.types import Batch, Tokens

B, T = 16, 64
MODEL = {
    "model.vocab_size": 256,
    "model.embed_dim": 64,
    "model.attention.num_heads": 8,
    "model.mlp.hidden_dim": 128,
    "model.max_length": T,
}
RUN = {
    "data.seq_length": T,
    "data.batch_size": B,
    "mesh.data": 1,
    "execution.layers": "scan",
    "execution.remat": "full",
    "execution.compute_dtype": "float32",
    "optimizer.warmup_steps": 0,
}

# A layer has 7 kernels, and with remat "full" its forward pass runs again before its backward pass.
# XLA's CPU compiler writes a reduce-scatter as an all-reduce, and our exchange of experts' rows
# there as gathers.
PER_LAYER = [
    # The gradients of a layer, together.
    ({"mesh.data": 8}, {"all-reduce": 1}),
    # Each kernel for the forward pass and again for the backward pass.
    ({"mesh.fsdp": 8}, {"all-gather": 2 * 7, "all-reduce": 1}),
    # Megatron-LM: sums after attention and after the MLP, forward and backward; again the first, as
    # nothing needs the second.
    ({"mesh.tensor": 8, "execution.shard_sequence": False}, {"all-reduce": 2 + 2 + 1}),
    # Positions are gathered before each of the two, forward and again, and their gradients after
    # each of the two. Sums as above, and one of the gradients of the norms, which work on a
    # device's positions alone.
    ({"mesh.tensor": 8}, {"all-gather": 2 + 2 + 2, "all-reduce": 6}),
    # As fsdp, and 7 hops of keys, values, their places and segments: forward, again, and backward
    # with gradients of the first two that go with theirs.
    (
        {"mesh.context": 8},
        {"all-gather": 2 * 7, "all-reduce": 1, "collective-permute": 7 * (4 + 4 + 8)},
    ),
    # Experts stay where they are: attention's 4 kernels and the router are gathered, and rows go to
    # their experts and back.
    ({"mesh.expert": 8, "model.experts.count": 8}, {"all-gather": 2 * 5 + 10, "all-reduce": 2}),
]


# Splits of the batch alone, of heads alone and of rows are left to the nightly run.
EVERY_RUN = [
    pytest.param(*case, marks=pytest.mark.slow) if n in (0, 2, 4) else case
    for n, case in enumerate(PER_LAYER)
]

# So many that what is sent once a step is a small share; the compiled loop is as long as of two.
LAYERS = 1000


def per_layer(settings: dict) -> dict[str, int]:
    """Collectives of a layer by kind."""
    config = override(Config(), {**MODEL, **RUN, "model.num_layers": LAYERS, **settings})
    parts = build(config)

    def like(dtype):
        return jax.ShapeDtypeStruct((B, T), dtype, sharding=row_sharding(parts.mesh))

    batch = Batch(
        inputs=Tokens(like(jnp.int32), like(jnp.int32), like(jnp.int32)),
        targets=like(jnp.int32),
        loss_mask=like(jnp.bool_),
    )
    step = jit_train_step(
        make_train_step(parts.loss, parts.optimizer, config, parts.model.specs),
        parts.model,
        parts.optimizer,
        parts.mesh,
    )
    with jax.set_mesh(parts.mesh):
        text = step.lower(parts.abstract, batch).compile().as_text()
    out: dict[str, int] = {}
    for (kind, _), (times, _) in summed(collectives(text, parts.mesh.shape)).items():
        out[kind] = out.get(kind, 0) + times
    assert all(n % LAYERS < LAYERS // 10 for n in out.values()), out
    return {kind: n // LAYERS for kind, n in out.items() if n >= LAYERS}


@pytest.mark.mesh
@pytest.mark.parametrize(
    ("settings", "expected"), EVERY_RUN, ids=lambda x: "-".join(f"{k}={v}" for k, v in x.items())
)
def test_a_layer_sends_what_it_must(settings, expected):
    assert per_layer(settings) == expected
