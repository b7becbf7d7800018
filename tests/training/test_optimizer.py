"""Optimizers against numpy, schedules at literal steps, and which parameters decay."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.config import ModelConfig, OptimizerConfig, override
from llm_jax.config.sections import settings
from llm_jax.models import build
from llm_jax.params.select import select
from llm_jax.training.optimizer import make_optimizer, make_schedule
from llm_jax.types import ConfigError, ParamSpec

NAMES = ("adamw", "adafactor", "lion", "muon", "sgd")
RATE, DECAY = 0.01, 0.1
CONFIG = override(
    OptimizerConfig(),
    {
        "learning_rate": RATE,
        "schedule": "constant",
        "warmup_steps": 0,
        "clip_norm": 0.0,
    },
)


def named_rule(name, more=()):
    """CONFIG with another update rule; muon's AdamW part has a learning rate of its own."""
    adam = {"update.adam_learning_rate": 0.02} if name == "muon" else {}
    return override(CONFIG, {"update": name, **adam, **dict(more)})


SPECS = {
    "embed": {"embedding": ParamSpec(("vocab", "embed"), (1,), "embedding")},
    "layers": {
        "query": {
            "kernel": ParamSpec(("layers", "embed", "heads", "head_dim"), (1,), "matrix"),
            "bias": ParamSpec(("layers", "heads", "head_dim"), (), "bias"),
        },
        "out": {"kernel": ParamSpec(("layers", "heads", "head_dim", "embed"), (1, 2), "matrix")},
        "up": {"kernel": ParamSpec(("layers", "embed", "mlp"), (1,), "matrix")},
        "norm": {"scale": ParamSpec(("layers", "norm"), (), "norm")},
    },
    "head": {"kernel": ParamSpec(("embed", "vocab"), (0,), "head")},
}
SIZES = {
    "layers": 2,
    "embed": 8,
    "heads": 2,
    "head_dim": 6,
    "mlp": 16,
    "vocab": 10,
    "norm": 8,
}
MATRICES = {"layers/query/kernel", "layers/out/kernel", "layers/up/kernel"}
DECAYED = MATRICES | {"embed/embedding", "head/kernel"}


def tree(seed, scale=1.0):
    rng = np.random.default_rng(seed)

    def one(spec):
        values = rng.normal(size=[SIZES[axis] for axis in spec.axes])
        return jnp.asarray(scale * values, jnp.float32)

    return jax.tree.map(one, SPECS)


def named(t):
    flat = jax.tree_util.tree_flatten_with_path(t)[0]
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(x, np.float64)
        for path, x in flat
    }


def updates(config, params, *gradients, steps=10):
    """The updates of consecutive steps, each by parameter name."""
    optimizer = make_optimizer(config, steps, params, SPECS)
    state, update, out = optimizer.init(params), jax.jit(optimizer.update), []
    for g in gradients:
        u, state = update(g, state, params)
        out.append(named(u))
    return out


def assert_updates(got, expected, rtol=1e-5):
    assert got.keys() == expected.keys()
    for name in expected:
        np.testing.assert_allclose(got[name], expected[name], rtol=rtol, atol=1e-7, err_msg=name)


def decay_of(name, p):
    return DECAY * p if name in DECAYED else 0.0


def test_adamw_two_steps():
    params, g1, g2 = tree(0), tree(1), tree(2)
    first, second = updates(
        override(CONFIG, {"update.beta1": 0.8, "update.beta2": 0.9, "update.eps": 1e-3}),
        params,
        g1,
        g2,
    )
    g1, g2 = named(g1), named(g2)
    p = named(params)
    assert_updates(
        first, {n: -RATE * (g1[n] / (np.abs(g1[n]) + 1e-3) + decay_of(n, p[n])) for n in p}
    )
    m = {n: (0.8 * 0.2 * g1[n] + 0.2 * g2[n]) / (1 - 0.8**2) for n in p}
    v = {n: (0.9 * 0.1 * g1[n] ** 2 + 0.1 * g2[n] ** 2) / (1 - 0.9**2) for n in p}
    assert_updates(
        second, {n: -RATE * (m[n] / (np.sqrt(v[n]) + 1e-3) + decay_of(n, p[n])) for n in p}
    )


def test_sgd_with_nesterov_momentum():
    params, g1, g2 = tree(0), tree(1), tree(2)
    first, second = updates(
        override(CONFIG, {"update": "sgd", "update.momentum": 0.5}), params, g1, g2
    )
    g1, g2, p = named(g1), named(g2), named(params)
    assert_updates(first, {n: -RATE * (1.5 * g1[n] + decay_of(n, p[n])) for n in p})
    assert_updates(
        second, {n: -RATE * (g2[n] + 0.5 * (g2[n] + 0.5 * g1[n]) + decay_of(n, p[n])) for n in p}
    )


def test_lion_takes_signs():
    params, g1, g2 = tree(0), tree(1), tree(2)
    first, second = updates(
        override(CONFIG, {"update": "lion", "update.beta2": 0.5}), params, g1, g2
    )
    g1, g2, p = named(g1), named(g2), named(params)
    assert_updates(first, {n: -RATE * (np.sign(g1[n]) + decay_of(n, p[n])) for n in p})
    assert_updates(
        second,
        {n: -RATE * (np.sign(0.9 * 0.5 * g1[n] + 0.1 * g2[n]) + decay_of(n, p[n])) for n in p},
    )


def test_muon_orthogonalises_layer_matrices_and_leaves_the_rest_to_adam():
    params, g = tree(0), tree(1)
    config = named_rule("muon", {"weight_decay": 0.0})
    (got,) = updates(config, params, g)
    g = named(g)
    for name in g:
        if name in MATRICES:
            reads = name != "layers/out/kernel"
            for layer in range(2):
                shape = (SIZES["embed"], -1) if reads else (-1, SIZES["embed"])
                update, gradient = got[name][layer].reshape(shape), g[name][layer].reshape(shape)
                _u, s, _vt = np.linalg.svd(update, full_matrices=False)
                assert s.max() / s.min() < 2.0 < np.linalg.cond(gradient), name
                # Same singular directions as the gradient, downhill.
                gu, _, gvt = np.linalg.svd(gradient, full_matrices=False)
                aligned = -np.diag(gu.T @ update @ gvt.T)
                assert (aligned > 0.5 * s.max()).all(), name
        else:
            np.testing.assert_allclose(
                got[name],
                -0.02 * g[name] / (np.abs(g[name]) + config.update.eps),
                rtol=1e-4,
                err_msg=name,
            )


@pytest.mark.parametrize("name", NAMES)
def test_a_step_goes_downhill_for_every_parameter(name):
    params, g = tree(0), tree(1)
    (got,) = updates(named_rule(name, {"weight_decay": 0.0}), params, g)
    for key, gradient in named(g).items():
        assert (got[key] * gradient).sum() < -0.3 * np.linalg.norm(got[key]) * np.linalg.norm(
            gradient
        ), key


@pytest.mark.parametrize("name", NAMES)
def test_each_optimizer_minimises_a_quadratic(name):
    target, params = tree(3), tree(4)
    adam = {"update.adam_learning_rate": 0.05} if name == "muon" else {}
    more = {"learning_rate": 0.05, "weight_decay": 0.0, "schedule": "linear", **adam}
    config = override(CONFIG, {"update": name, **more})
    optimizer = make_optimizer(config, 200, params, SPECS)

    def step(carry, _):
        params, state = carry
        loss, g = jax.value_and_grad(
            lambda p: sum(
                jnp.sum((a - b) ** 2) for a, b in zip(jax.tree.leaves(p), jax.tree.leaves(target))
            )
        )(params)
        u, state = optimizer.update(g, state, params)
        return (jax.tree.map(jnp.add, params, u), state), loss

    losses = jax.jit(lambda p: jax.lax.scan(step, (p, optimizer.init(p)), None, 200)[1])(params)
    assert losses[-1] < 0.05 * losses[0], losses[::20]


@pytest.mark.parametrize("name", NAMES)
def test_with_a_gradient_of_zero_only_decayed_parameters_move(name):
    params = tree(0)
    (got,) = updates(named_rule(name), params, jax.tree.map(jnp.zeros_like, params))
    p = named(params)
    rate = {n: 0.02 if name == "muon" and n not in MATRICES else RATE for n in p}
    assert_updates(got, {n: -rate[n] * decay_of(n, p[n]) for n in p})


@pytest.mark.parametrize("name", NAMES)
def test_no_decay_at_all(name):
    params = tree(0)
    config = named_rule(name, {"weight_decay": 0.0, "decay": ()})
    (got,) = updates(config, params, jax.tree.map(jnp.zeros_like, params))
    assert not any(u.any() for u in got.values())


@pytest.mark.parametrize("clip, factor", [(0.0, 1.0), (1e6, 1.0), (0.5, None)])
def test_clipping_is_by_the_global_norm(clip, factor):
    params, g = tree(0), tree(1)
    norm = np.sqrt(sum((x**2).sum() for x in named(g).values()))
    factor = 0.5 / norm if factor is None else factor
    (got,) = updates(
        override(
            CONFIG,
            {
                "update": "sgd",
                "update.momentum": 0.0,
                "weight_decay": 0.0,
                "clip_norm": clip,
            },
        ),
        params,
        g,
    )
    assert_updates(got, {n: -RATE * factor * x for n, x in named(g).items()})


# Each field, in an optimizer and schedule that reads it, changes the third update.
FLIPS = {
    "update": ({}, "lion"),
    "learning_rate": ({}, 0.5),
    "update.adam_learning_rate": ({"update": "muon"}, 0.5),
    "schedule": ({}, "cosine"),
    "warmup_steps": ({}, 4),
    "schedule.final_ratio": ({"schedule": "linear"}, 0.5),
    "schedule.decay_fraction": ({"schedule": "wsd"}, 1.0),
    "update.beta1": ({}, 0.5),
    "update.beta2": ({}, 0.5),
    "update.eps": ({}, 1e-2),
    "update.momentum": ({"update": "sgd"}, 0.5),
    "weight_decay": ({}, 0.5),
    "decay": ({}, ("role:matrix", "role:head")),
    "clip_norm": ({"update": "sgd"}, 1e-3),
}


@pytest.mark.parametrize("field", FLIPS)
def test_each_field_is_read(field):
    needs, value = FLIPS[field]
    config = override(CONFIG, needs)
    other = override(config, {field: value})
    params, gradients = tree(0), [tree(s) for s in (1, 2, 3)]
    a, b = (updates(c, params, *gradients, steps=5)[-1] for c in (config, other))
    assert any(np.abs(a[n] - b[n]).max() > 1e-6 for n in a)


@pytest.mark.parametrize(
    "gated, names",
    [
        ("update.beta1", ("lion", "muon")),
        ("update.beta2", ("lion", "muon")),
        ("update.eps", ("muon",)),
        ("update.momentum", ("muon",)),
    ],
)
def test_settings_are_read_by_every_optimizer_that_claims_them(gated, names):
    params, gradients = tree(0), [tree(s) for s in (1, 2, 3)]
    for name in names:
        config = named_rule(name)
        a, b = (
            updates(c, params, *gradients)[-1] for c in (config, override(config, {gated: 0.3}))
        )
        assert any(np.abs(a[n] - b[n]).max() > 1e-6 for n in a), name


def test_the_table_has_every_field():
    assert set(FLIPS) == set(settings(OptimizerConfig))


def values(steps, at, **fields):
    schedule = make_schedule(
        override(OptimizerConfig(), {"learning_rate": 1.0, **fields}),
        steps,
    )
    return [float(schedule(jnp.int32(s))) for s in at]


# 101 steps, warm-up over 20: steps 0, 9 (half-way up), 19 and 20 (top), 60 (half-way down), 100
# (last).
AT = (0, 9, 19, 20, 60, 100)


@pytest.mark.parametrize(
    "schedule, expected",
    [
        ("cosine", [0.05, 0.5, 1, 1, 0.55, 0.1]),
        ("linear", [0.05, 0.5, 1, 1, 0.55, 0.1]),
        ("wsd", [0.05, 0.5, 1, 1, 1, 0.1]),
        ("constant", [0.05, 0.5, 1, 1, 1, 1]),
        # The root of 20 over the step's number.
        ("rsqrt", [0.05, 0.5, 1, (20 / 21) ** 0.5, (20 / 61) ** 0.5, (20 / 101) ** 0.5]),
    ],
)
def test_schedules_at_literal_steps(schedule, expected):
    np.testing.assert_allclose(
        values(101, AT, schedule=schedule, warmup_steps=20), expected, rtol=1e-5
    )


def test_cosine_and_linear_differ_at_a_quarter():
    # Step 40 is a quarter of the way from 20 to 100: (1 + cos(pi/4)) / 2 = 0.853553.
    assert values(101, [40], schedule="cosine", warmup_steps=20) == pytest.approx(
        [0.1 + 0.9 * 0.853553], rel=1e-5
    )
    assert values(101, [40], schedule="linear", warmup_steps=20) == pytest.approx([0.775], rel=1e-5)


def test_wsd_decays_over_its_fraction():
    # A fifth of the 80 steps after warm-up: from step 84, half-way at 92.
    at = [83, 84, 92, 100]
    assert values(
        101, at, schedule="wsd", warmup_steps=20, **{"schedule.decay_fraction": 0.2}
    ) == pytest.approx([1, 1, 0.55, 0.1], rel=1e-5)


def test_without_warmup_the_first_step_is_the_peak():
    assert values(11, [0, 5, 10], schedule="linear", warmup_steps=0) == pytest.approx(
        [1, 0.55, 0.1]
    )
    assert values(1, [0], schedule="cosine", warmup_steps=0) == pytest.approx([1])


def test_past_the_last_step_the_rate_stays():
    assert values(11, [10, 11, 500], schedule="cosine", warmup_steps=0) == pytest.approx([0.1] * 3)


@pytest.mark.parametrize(
    ("decay", "decayed"),
    [
        (("role:norm",), {"layers/norm/scale"}),
        (("role:router",), set()),
        (("layers/out/*", "head/kernel"), {"layers/out/kernel", "head/kernel"}),
        (("*/kernel",), MATRICES | {"head/kernel"}),
    ],
)
def test_parameters_decay_by_role_or_by_path(decay, decayed):
    """A role that this model lacks is none of its parameters."""
    params = tree(0)
    config = dataclasses.replace(CONFIG, decay=decay)
    (got,) = updates(config, params, jax.tree.map(jnp.zeros_like, params))
    assert {name for name, update in got.items() if update.any()} == decayed


@pytest.mark.parametrize(
    ("decay", "message"),
    [
        (("role:matrixes",), "optimizer.decay has .role:matrixes., which matches no parameter"),
        (("layers/quary/*",), "'layers/quary/.', which matches no parameter"),
        (("kernel",), "'kernel', which matches no parameter; the nearest are "),
    ],
)
def test_a_pattern_of_nothing_is_refused(decay, message):
    with pytest.raises(ConfigError, match=message):
        make_optimizer(dataclasses.replace(CONFIG, decay=decay), 10, tree(0), SPECS)


def test_matrices_and_tables_decay_and_nothing_else():
    rich = override(
        ModelConfig(),
        {
            "vocab_size": 8,
            "num_layers": 2,
            "embed_dim": 8,
            "attention.num_heads": 2,
            "mlp.hidden_dim": 8,
            "norm": "layer",
            "norm.bias": True,
            "norm.position": "sandwich",
            "attention.qk_norm": "head",
            "positions": "learned",
            "attention.qkv_bias": True,
            "attention.out_bias": True,
            "mlp.bias": True,
            "embedding.tied": False,
            "attention.sinks": True,
            "experts.count": 2,
            "first_layers.count": 1,
            "first_layers.mlp_dim": 8,
            "experts.router_bias": True,
        },
    )
    model = build(rich)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    mask = named(select(OptimizerConfig().decay, model.specs, "optimizer.decay"))
    assert {n.rsplit("/", 1)[-1] for n, on in mask.items() if on} == {"kernel", "embedding"}
    assert {n.rsplit("/", 1)[-1] for n, on in mask.items() if not on} == {
        "scale",
        "bias",
        "positions",
    }
    for name in NAMES:
        make_optimizer(named_rule(name), 10, shapes, model.specs)
