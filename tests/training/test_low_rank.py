"""The parts of a leaf type are selected by path: a low-rank part is trained alone, and its base has
no gradient, no slot of the optimizer and no decay.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from llm_jax.config import (
    Config,
    DataConfig,
    ExecutionConfig,
    ModelConfig,
    OptimizerConfig,
    TrainConfig,
    override,
)
from llm_jax.models import build
from llm_jax.objectives.token_batches import random_tokens
from llm_jax.objectives.token_loss import make_token_loss
from llm_jax.ops.weights import LowRank, Quantized, add_low_rank, expand_specs
from llm_jax.params.select import merge, present, select, split
from llm_jax.training.optimizer import make_optimizer
from llm_jax.training.state import from_saved, make_init, to_saved
from llm_jax.training.step import gradient_of, make_train_step
from llm_jax.types import ConfigError, ParamSpec

MATRIX = ParamSpec(("embed", "mlp"), (0,), "matrix")
WEIGHTS = {
    "up": {"kernel": LowRank(Quantized(0, 1), 2, 3)},
    "down": {"kernel": LowRank(4, 5, 6)},
    "norm": {"scale": 7},
}
SPECS = expand_specs(
    {
        "up": {"kernel": MATRIX},
        "down": {"kernel": MATRIX},
        "norm": {"scale": ParamSpec((None,), (), "norm")},
    },
    WEIGHTS,
)


@pytest.mark.parametrize(
    ("patterns", "chosen"),
    [
        (("*",), {0, 1, 2, 3, 4, 5, 6, 7}),
        (("up/kernel",), {0, 1, 2, 3}),
        (("up/kernel/a", "*/b"), {2, 3, 6}),
        (("*/base",), {0, 1, 4}),
        (("up/kernel/base/scale",), {1}),
        (("role:matrix",), {0, 2, 3, 4, 5, 6}),
    ],
)
def test_parts_are_selected_by_path_and_put_together_again(patterns, chosen):
    trainable, frozen = split(WEIGHTS, select(patterns, SPECS, "train.trainable"))
    assert set(jax.tree.leaves(trainable)) == chosen
    assert set(jax.tree.leaves(frozen)) == set(range(8)) - chosen
    assert merge(trainable, frozen) == merge(frozen, trainable) == WEIGHTS
    assert split(WEIGHTS, present(WEIGHTS, trainable)) == (trainable, frozen)


def test_a_part_that_does_not_exist_or_is_there_twice_is_named():
    with pytest.raises(ConfigError, match="'up/kernel/c', .* the nearest are up/kernel/[ab]"):
        select(("up/kernel/c",), SPECS, "train.trainable")
    with pytest.raises(ValueError, match="'up/kernel/a' is in both"):
        merge(WEIGHTS, {"up": {"kernel": LowRank(None, 2, None)}})


CONFIG = Config(
    model=override(
        ModelConfig(),
        {
            "vocab_size": 16,
            "num_layers": 1,
            "embed_dim": 8,
            "attention.num_heads": 2,
            "mlp.hidden_dim": 8,
            "max_length": 4,
        },
    ),
    optimizer=override(
        OptimizerConfig(),
        {
            "learning_rate": 0.1,
            "schedule": "constant",
            "warmup_steps": 0,
            "weight_decay": 0.5,
            "clip_norm": 0.0,
        },
    ),
    train=TrainConfig(steps=10),
)
QUERY = "layers/attention/query/kernel"


def with_low_rank(model):
    """``model`` whose query kernels have a low-rank part."""
    made = model.init

    def init(key):
        params = made(key)
        query = params["layers"]["attention"]["query"]
        contract = model.specs["layers"]["attention"]["query"]["kernel"].contract
        kernel = query["kernel"]
        leaf = add_low_rank(key, kernel, kernel.shape, contract, rank=2)
        query["kernel"] = LowRank(leaf.base, leaf.a, jnp.ones_like(leaf.b))
        return params

    return model._replace(init=init)


def test_only_the_low_rank_part_of_one_matrix_is_trained():
    execution = ExecutionConfig(layers="scan", compute_dtype="float32")
    model = with_low_rank(build(CONFIG.model, execution))
    patterns = (f"{QUERY}/a", f"{QUERY}/b")
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    specs = expand_specs(model.specs, shapes)
    trained, _ = split(shapes, select(patterns, specs, "train.trainable"))
    rule = make_optimizer(CONFIG.optimizer, 10, trained, specs)
    loss = make_token_loss(model, CONFIG, 8)
    before = jax.jit(make_init(model, rule, patterns))(jax.random.key(0))
    batch = random_tokens(Config(model=CONFIG.model, data=DataConfig(seq_length=4, batch_size=2)))
    gradient = jax.eval_shape(
        lambda state: gradient_of(loss)(state.trainable, state.frozen, batch, None)[0], before
    )
    a, b = (1, 8, 2), (1, 2, 2, 4)
    assert [leaf.shape for leaf in jax.tree.leaves(gradient)] == [a, b]
    for slots in ("mu", "nu"):
        found = jax.tree.leaves(optax.tree.get(before.opt_state, slots))
        assert [leaf.shape for leaf in found] == [a, b]
    after, metrics = jax.jit(make_train_step(loss, rule, CONFIG, specs))(before, batch)
    jax.tree.map(np.testing.assert_array_equal, after.frozen, before.frozen)
    old = before.params["layers"]["attention"]["query"]["kernel"]
    new = after.params["layers"]["attention"]["query"]["kernel"]
    np.testing.assert_array_equal(new.base, old.base)
    # A first step of Adam moves each number by the rate, beside the decay of 0.05 of it.
    np.testing.assert_allclose(jnp.abs(new.b - 0.95 * old.b), 0.1, rtol=1e-2)
    np.testing.assert_allclose(jnp.abs(new.a - 0.95 * old.a), 0.1, rtol=1e-2)
    assert float(metrics["param_norm"]) == pytest.approx(
        float(jnp.sqrt(jnp.sum(new.a**2) + jnp.sum(new.b**2))), rel=1e-6
    )
    again = from_saved(to_saved(after), before)
    jax.tree.map(np.testing.assert_array_equal, again, after)
