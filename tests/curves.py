"""Eight steps of a small model on any mesh: losses, norms and the last gradients, to compare with
one device.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from llm_jax.config import (
    Config,
    ExecutionConfig,
    MeshConfig,
    ModelConfig,
    OptimizerConfig,
    TrainConfig,
    override,
)
from llm_jax.models import build, zigzag_order
from llm_jax.objectives.token_loss import token_loss
from llm_jax.sharding import device_put_batch, make_mesh
from llm_jax.training.optimizer import make_optimizer
from llm_jax.training.state import TrainState, create_state, state_shardings
from llm_jax.training.step import jit_train_step, make_train_step
from llm_jax.types import Batch, Tokens

# Shards here are at least 8 numbers wide: XLA may round the last bit of a narrower shard's initial
# values differently (seen on CPU with jax 0.12), since its scalar and vector code for the normal
# distribution differ.
MODEL = override(
    ModelConfig(),
    {
        "vocab_size": 64,
        "num_layers": 2,
        "embed_dim": 64,
        "attention.num_heads": 4,
        "attention.num_kv_heads": 2,
        "mlp.hidden_dim": 64,
        "max_length": 16,
        "attention.qk_norm": "head",
        "attention.window_pattern": (0, 4),
    },
)
MOE = override(
    MODEL,
    {
        "experts.count": 8,
        "experts.per_token": 2,
        "experts.shared": 1,
        "experts.router_z_loss": 1e-3,
        "attention.window_pattern": (4,),
    },
)
SINKS = {
    "attention.sinks": True,
    "attention.qkv_bias": True,
    "attention.out_bias": True,
    "mlp.bias": True,
    "experts.router_bias": True,
    "mlp.activation": "quick_gelu",
    "mlp.clamp": 1.0,
    "mlp.up_offset": 1.0,
}
DEEP = dataclasses.replace(MODEL, num_layers=4)
DEEP_MOE = dataclasses.replace(MOE, num_layers=4)
MODELS = {
    "dense": MODEL,
    "dropout": dataclasses.replace(MODEL, dropout=0.1),
    "moe": MOE,
    "moe by bias": override(
        MOE,
        {
            "experts.router": "sigmoid",
            "experts.balance": "bias",
            "experts.shared": 0,
            "mlp": "plain",
        },
    ),
    "latent": override(
        MOE,
        {
            "attention.head_dim": 24,
            "attention.value_dim": 16,
            "attention": "latent",
            "attention.kv_latent": 32,
            "attention.q_latent": 32,
            "attention.rope_dim": 8,
            "first_layers.count": 1,
            "first_layers.mlp_dim": 64,
            "experts.router": "sigmoid",
            "experts.balance": "bias",
            "experts.groups.count": 4,
            "experts.groups.per_token": 2,
            "experts.groups.score": "best_two",
        },
    ),
    "sinks": override(MOE, {**SINKS, "experts.shared": 0}),
    "all but routing by bias": override(MOE, {**SINKS, "dropout": 0.1}),
    "deep": DEEP,
    "deep sinks": override(DEEP, {"attention.sinks": True, "attention.qkv_bias": True}),
    "deep moe": DEEP_MOE,
    "deep moe with biases": override(DEEP_MOE, {"experts.router_bias": True, "mlp.bias": True}),
}
STEPS, B, T = 8, 8, 16


class Curve(NamedTuple):
    """first: initial parameters · metrics: by name, [STEPS] · gradients: the last ones, before
    clipping.
    """

    first: Any
    metrics: dict[str, np.ndarray]
    gradients: Any


def batches():
    """Rows of two documents each, whose tokens step through eight of the 64: soon learnt."""
    rng = np.random.default_rng(0)
    for _ in range(STEPS):
        start, stride = rng.integers(0, 8, (2, B, 1))
        stream = (start + stride * np.arange(T + 1)) % 8
        cut = rng.integers(4, 12, (B, 1))
        second = np.arange(T) >= cut
        positions = np.where(second, np.arange(T) - cut, np.arange(T))
        yield Batch(
            inputs=Tokens(
                stream[:, :-1].astype(np.int32),
                1 + second.astype(np.int32),
                positions.astype(np.int32),
            ),
            targets=stream[:, 1:].astype(np.int32),
            loss_mask=np.arange(T) != cut - 1,
        )


def kept() -> optax.GradientTransformation:
    """Changes nothing; its state is the gradients of the last step."""
    return optax.GradientTransformation(
        lambda params: jax.tree.map(jnp.zeros_like, params),
        lambda grads, _, params=None: (grads, grads),
    )


def train(
    mesh: dict[str, int],
    model: str = "dense",
    layers: str = "unroll",
    remat: str = "none",
    accumulation: int = 1,
    optimizer: str = "adamw",
    context: str = "ring",
    devices: list | None = None,
    params: Any = None,
    **execution: Any,
) -> Curve:
    """``STEPS`` steps of ``MODELS[model]`` from ``params`` (default: random) on ``mesh``, of whose
    axes those not named are 1.
    """
    config = Config(
        model=MODELS[model],
        optimizer=override(
            OptimizerConfig(),
            {
                "update": optimizer,
                "learning_rate": 3e-3,
                **({"update.adam_learning_rate": 3e-3} if optimizer == "muon" else {}),
                "warmup_steps": 2,
            },
        ),
        train=TrainConfig(steps=STEPS, z_loss=1e-4, accumulation=accumulation),
    )
    on = make_mesh(MeshConfig(**{"data": 1, **mesh}), devices)
    ways = on.shape["context"]
    attention = "blockwise" if ways > 1 and context == "ring" else "xla"
    how = ExecutionConfig(
        layers=layers,
        remat=remat,
        attention=attention,
        compute_dtype="float32",
        context=context,
        **execution,
    )
    net = build(config.model, how, context=ways)
    shapes = jax.eval_shape(net.init, jax.random.key(0))
    rule = optax.chain(
        kept(),
        make_optimizer(config.optimizer, STEPS, shapes, net.specs, config.model.balance_rate),
    )
    order = functools.partial(zigzag_order, config.model, how)
    loss = token_loss(net, 4, 1e-4, order=order)
    step = jit_train_step(make_train_step(loss, rule, config, net.specs), net, rule, on)
    if params is None:
        state = create_state(net, rule, on, seed=0)
    else:
        where = state_shardings(net, rule, on)
        placed = jax.device_put(params, where.params)
        start = jax.device_put(
            jnp.zeros((), jnp.int32), where.step
        )  # as the step returns it, or the step compiles twice
        slots = jax.jit(rule.init, out_shardings=where.opt_state)(placed)
        state = TrainState(start, placed, {}, slots)
    first = jax.device_get(state.params)
    with jax.set_mesh(on):
        lines = []
        for batch in batches():
            state, metrics = step(state, device_put_batch(batch, on))
            lines.append(jax.device_get(metrics))
    return Curve(
        first,
        {name: np.array([line[name] for line in lines]) for name in lines[0]},
        jax.device_get(state.opt_state[0]),
    )


@functools.cache
def on_one_device(model: str, optimizer: str) -> Curve:
    """The reference: one device, no remat, and layers written out where there are only two."""
    layers = "unroll" if MODELS[model].num_layers == 2 else "scan"
    curve = train({}, model, layers, optimizer=optimizer, devices=jax.devices()[:1])
    loss = curve.metrics["loss"]
    assert loss[-1] < 0.9 * loss[0], "the model must learn, or equal curves say little"
    return curve
