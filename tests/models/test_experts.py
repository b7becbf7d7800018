"""Experts in a decoder: against a dense decoder, terms of the loss by hand, what keeps experts
evenly used, cached decoding.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pairwise import parametrize

from llm_jax.config import (
    Config,
    DataConfig,
    ExecutionConfig,
    MeshConfig,
    ModelConfig,
    OptimizerConfig,
    TrainConfig,
    override,
)
from llm_jax.config.validate import validate, validate_model
from llm_jax.decode.placement import compute_params
from llm_jax.models import build
from llm_jax.objectives.token_loss import token_loss
from llm_jax.training.flops import matmul_parameters
from llm_jax.training.optimizer import make_optimizer
from llm_jax.training.state import TrainState
from llm_jax.training.step import make_train_step
from llm_jax.types import Batch, ConfigError, Tokens

DENSE = override(
    ModelConfig(),
    {
        "vocab_size": 32,
        "num_layers": 2,
        "embed_dim": 16,
        "attention.num_heads": 2,
        "mlp.hidden_dim": 24,
        "max_length": 16,
        "attention.window_pattern": (0, 4),
    },
)
MOE = override(DENSE, {"experts.count": 4, "experts.per_token": 2, "experts.router_z_loss": 0.1})
UNROLL = ExecutionConfig(layers="unroll", attention="xla", compute_dtype="float32")
SCAN = dataclasses.replace(UNROLL, layers="scan")
B, T = 4, 8


def batch(seed=0):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, 32, (B, T + 1)).astype(np.int32)
    positions = np.broadcast_to(np.arange(T, dtype=np.int32), (B, T))
    return Batch(
        inputs=Tokens(tokens[:, :-1], np.ones((B, T), np.int32), positions),
        targets=tokens[:, 1:],
        loss_mask=rng.random((B, T)) < 0.7,
    )


@functools.cache
def made(model, execution=UNROLL):
    """The model, its apply compiled, and random parameters."""
    net, rng = build(model, execution), np.random.default_rng(1)
    shapes = jax.eval_shape(net.init, jax.random.key(0))

    def fill(path, a):
        return np.ones(a.shape) if path[-1].key == "scale" else rng.normal(size=a.shape) * 0.02

    params = jax.tree_util.tree_map_with_path(
        lambda path, a: jnp.asarray(fill(path, a), a.dtype), shapes
    )
    if model.balance_rate:
        params["layers"]["mlp"]["router"]["balance"] = jnp.zeros((2, 4))
    return net._replace(apply=jax.jit(net.apply)), params


def changed(params, **kernels):
    """params with other leaves in the MLP of the layers."""
    mlp = {name: {"kernel": k} if not isinstance(k, dict) else k for name, k in kernels.items()}
    return {**params, "layers": {**params["layers"], "mlp": {**params["layers"]["mlp"], **mlp}}}


@pytest.mark.parametrize("k", [1, 3])
def test_equal_experts_are_one_mlp(k):
    """Weights of a token's experts sum to 1: whoever is chosen, the model is the dense one."""
    dense, params = made(DENSE)
    net, mine = made(override(MOE, {"experts.per_token": k}))
    same = {
        n: jnp.repeat(params["layers"]["mlp"][n]["kernel"][:, None], 4, 1)
        for n in ("gate", "up", "down")
    }
    mine = {
        **params,
        "layers": {
            **params["layers"],
            "mlp": {**mine["layers"]["mlp"], **{n: {"kernel": w} for n, w in same.items()}},
        },
    }
    np.testing.assert_allclose(
        net.apply(mine, batch()).hidden, dense.apply(params, batch()).hidden, atol=1e-5
    )


def test_shared_experts_are_an_mlp_beside():
    """With experts that write nothing, the shared ones are a dense MLP of their width."""
    dense, params = made(override(DENSE, {"mlp.hidden_dim": 48}))
    net, mine = made(override(MOE, {"experts.shared": 2}))
    mlp = {
        **mine["layers"]["mlp"],
        "shared": params["layers"]["mlp"],
        "down": jax.tree.map(jnp.zeros_like, mine["layers"]["mlp"]["down"]),
    }
    mine = {**params, "layers": {**params["layers"], "mlp": mlp}}
    np.testing.assert_allclose(
        net.apply(mine, batch()).hidden, dense.apply(params, batch()).hidden, atol=1e-5
    )


def test_router_scale_and_a_sigmoid_without_normalising_weigh_each_expert_by_its_own_score():
    """All logits 0: each of 4 experts has sigmoid score 1/2, so 2 of them at scale 3 make 3 times
    one MLP.
    """
    dense, params = made(override(DENSE, {"num_layers": 1, "attention.window_pattern": (0,)}))
    model = override(
        MOE,
        {
            "num_layers": 1,
            "attention.window_pattern": (0,),
            "experts.router": "sigmoid",
            "experts.normalize": False,
            "experts.scale": 3.0,
        },
    )
    net, mine = made(model)
    same = {
        n: {"kernel": jnp.repeat(params["layers"]["mlp"][n]["kernel"][:, None], 4, 1)}
        for n in ("gate", "up")
    }
    same["down"] = {
        "kernel": jnp.repeat(params["layers"]["mlp"]["down"]["kernel"][:, None], 4, 1) / 3
    }
    mlp = {**same, "router": {"kernel": jnp.zeros((1, 16, 4))}}
    mine = {**params, "layers": {**params["layers"], "mlp": mlp}}
    np.testing.assert_allclose(
        net.apply(mine, batch()).hidden, dense.apply(params, batch()).hidden, atol=1e-5
    )


@pytest.mark.parametrize("execution", [UNROLL, SCAN])
def test_terms_of_an_even_router_by_hand(execution):
    """Logits 0 in 2 layers: even scores give a balance loss of 1 a token whoever is chosen, and
    log(4)² a token in the z-loss.
    """
    net, params = made(MOE, execution)
    params = changed(params, router=jnp.zeros((2, 16, 4)))
    out, counted = net.apply(params, batch()), batch().loss_mask.sum()
    np.testing.assert_allclose(out.aux["balance"], 2 * 0.01 * counted, rtol=1e-5)
    np.testing.assert_allclose(out.aux["router_z"], 2 * 0.1 * np.log(4) ** 2 * counted, rtol=1e-5)
    # Ties go to the first experts.
    assert out.load.tolist() == [[counted, counted, 0, 0]] * 2


def test_tokens_that_do_not_count_say_nothing_of_balance():
    net, params = made(MOE)
    one, b = net.apply(params, batch()), batch()
    # The last token is seen by nobody, and does not count.
    tokens, counts = b.inputs.ids.copy(), b.loss_mask.copy()
    counts[:, -1] = False
    before = net.apply(params, b._replace(loss_mask=counts))
    tokens[:, -1] = (tokens[:, -1] + 1) % 32
    after = net.apply(params, b._replace(inputs=b.inputs._replace(ids=tokens), loss_mask=counts))
    assert float(before.aux["balance"]) == float(after.aux["balance"]) != float(one.aux["balance"])


def test_terms_are_sums_over_rows():
    net, params = made(MOE)
    rows = [net.apply(params, jax.tree.map(lambda x, r=r: x[r : r + 1], batch())) for r in range(B)]
    whole = net.apply(params, batch())
    for name in ("balance", "router_z"):
        np.testing.assert_allclose(whole.aux[name], sum(r.aux[name] for r in rows), rtol=1e-5)
    np.testing.assert_array_equal(whole.load, sum(r.load for r in rows))


def trained(model, params, optimizer="sgd", steps=1, accumulation=1, **settings):
    """States and metrics of steps on one batch."""
    net = build(model, UNROLL)
    options = override(
        OptimizerConfig(),
        {
            "update": optimizer,
            "learning_rate": 0.1,
            "warmup_steps": 0,
            "schedule": "constant",
            "weight_decay": 0.0,
            **settings,
        },
    )
    config = Config(
        model=model, optimizer=options, train=TrainConfig(steps=100, accumulation=accumulation)
    )
    rule = make_optimizer(options, 100, params, net.specs, model.balance_rate)
    step = jax.jit(make_train_step(token_loss(net, 8, 0.0), rule, config, net.specs))
    state = TrainState(jnp.zeros((), jnp.int32), params, {}, rule.init(params))
    out = []
    for _ in range(steps):
        state, metrics = step(state, batch())
        out.append((state, jax.device_get(metrics)))
    return out


BIAS = override(
    MOE, {"experts.balance": "bias", "experts.balance.rate": 0.01, "experts.router": "sigmoid"}
)


@parametrize(
    "optimizer, accumulation",
    [("adamw", 1), ("muon", 2), ("lion", 1), ("adafactor", 2), ("sgd", 1)],
    by_default=[("muon", 2)],
)
def test_a_bias_moves_by_its_rate_against_what_is_overused(optimizer, accumulation):
    net, params = made(BIAS)
    load = np.asarray(net.apply(params, batch()).load)
    ((state, metrics),) = trained(BIAS, params, optimizer, accumulation=accumulation)
    moved = np.asarray(state.params["layers"]["mlp"]["router"]["balance"])
    np.testing.assert_allclose(
        moved, -0.01 * np.sign(load - load.mean(axis=1, keepdims=True)), atol=1e-7
    )
    np.testing.assert_allclose(
        metrics["expert_load"], (load / load.mean(axis=1, keepdims=True)).max(), rtol=1e-6
    )
    assert metrics["balance"] == 0


def test_loads_neither_count_in_the_gradients_norm_nor_are_clipped():
    _, params = made(BIAS)
    free = override(BIAS, {"experts.balance": "none"})
    router = {"kernel": params["layers"]["mlp"]["router"]["kernel"]}
    plain = changed(params, router=router)
    ((one, with_bias),) = trained(BIAS, params, clip_norm=1e-3)
    ((other, without),) = trained(free, plain, clip_norm=1e-3)
    np.testing.assert_allclose(with_bias["grad_norm"], without["grad_norm"], rtol=1e-6)
    for name in ("gate", "up", "down"):
        np.testing.assert_array_equal(
            *(s.params["layers"]["mlp"][name]["kernel"] for s in (one, other))
        )


BY_LOSS = override(MOE, {"experts.balance.weight": 1.0})


@parametrize("model", [[BIAS], [BY_LOSS]], by_default=[[BIAS]])
def test_a_router_that_sends_all_tokens_to_two_experts_comes_to_use_all(model):
    _, params = made(model)
    # The hidden state's first number, made large and positive by the norm's scale, prefers two
    # experts.
    kernel = 0.1 * params["layers"]["mlp"]["router"]["kernel"]
    embedding = params["embed"]["embedding"].at[:, 0].set(0.2)
    kernel = kernel.at[:, 0, :2].add(0.2)
    router = {**params["layers"]["mlp"]["router"], "kernel": kernel}
    params = {**changed(params, router=router), "embed": {"embedding": embedding}}
    curve = [m["expert_load"] for _, m in trained(model, params, steps=60)]
    assert curve[0] > 1.9 and min(curve[-10:]) < 1.5, (curve[0], curve[-10:])


def test_the_bias_chooses_and_does_not_weigh():
    """A large bias on all experts alike changes nothing; on two experts, all tokens go there."""
    net, params = made(BIAS)
    router = params["layers"]["mlp"]["router"]

    def biased(b):
        return net.apply(
            changed(params, router={**router, "balance": jnp.broadcast_to(b, (2, 4))}),
            batch(),
        )

    np.testing.assert_array_equal(
        biased(jnp.full(4, 8.0)).hidden, net.apply(params, batch()).hidden
    )
    counted = batch().loss_mask.sum()
    assert biased(jnp.array([0.0, 8.0, 0.0, 8.0])).load.tolist() == [[0, counted, 0, counted]] * 2


@pytest.mark.parametrize("execution", [UNROLL, SCAN])
def test_cached_decoding_is_the_full_forward_pass(execution):
    model = override(MOE, {"experts.shared": 1})
    net, params = made(model, execution)
    b = batch()
    full = net.apply(params, b).hidden
    cache, out = net.init_cache(B, T), []
    for t in range(T):
        step = net.apply(params, jax.tree.map(lambda x, t=t: x[:, t : t + 1], b), cache)
        cache, _ = step.cache, out.append(step.hidden[:, 0])
    assert step.aux == {} and step.load is None
    np.testing.assert_allclose(jnp.stack(out, 1), full, atol=1e-5)


def test_decoding_chooses_experts_in_float32_as_training_does():
    net, params = made(MOE, dataclasses.replace(UNROLL, compute_dtype="bfloat16"))
    layer = compute_params(net, params, "split")["layers"][0]["mlp"]
    assert (
        layer["router"]["kernel"].dtype == jnp.float32
        and layer["up"]["kernel"].dtype == jnp.bfloat16
    )


def test_a_step_counts_the_parameters_that_a_token_meets():
    """By hand: attention 4·16·16, two experts of 3·16·24 and a router of 16·4 in each of 2 layers,
    32·16 in the output.
    """
    assert matmul_parameters(MOE) == 2 * (4 * 16 * 16 + 2 * 3 * 16 * 24 + 16 * 4) + 32 * 16
    shared = override(MOE, {"experts.shared": 1, "mlp": "plain"})
    assert matmul_parameters(shared) == 2 * (4 * 16 * 16 + 3 * 2 * 16 * 24 + 16 * 4) + 32 * 16


@pytest.mark.parametrize(
    "change, message",
    [
        (
            {"experts.per_token": 5},
            "model.experts.per_token is 5; it must be from 1 to model.experts.count, 4",
        ),
        ({"experts.per_token": 0}, "model.experts.per_token is 0"),
        ({"experts.count": -1}, "model.experts.count is -1; it must be at least 1"),
        ({"experts.shared": -1}, "model.experts.shared is -1"),
        ({"experts.scale": 0.0}, "model.experts.scale is 0.0; it must be more than 0"),
    ],
)
def test_experts_that_cannot_be_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        validate_model(override(MOE, change))


def test_a_mesh_with_an_expert_axis_needs_experts():
    with pytest.raises(
        ConfigError,
        match=r"model.experts is .none., and mesh.expert 2 splits experts, and there are none",
    ):
        validate(
            Config(
                model=DENSE,
                mesh=MeshConfig(expert=2),
                data=DataConfig(seq_length=8),
                optimizer=OptimizerConfig(warmup_steps=1),
            )
        )
