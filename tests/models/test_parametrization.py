"""muP: initial values, learning rates and multipliers by their table, and the coordinate check."""

import functools
import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.config import Config, ModelConfig, OptimizerConfig, override
from llm_jax.config.parametrization import adam_rate_scale, initial_scale, muon_rate_scale
from llm_jax.config.saved import from_json, to_json
from llm_jax.config.validate import validate
from llm_jax.config.validate_model import validate_model
from llm_jax.models import build
from llm_jax.plan.shares import shapes
from llm_jax.training.optimizer import make_optimizer
from llm_jax.training.update_rules import adam_rate_scales, adamw, decay_mask, is_matrix, muon
from llm_jax.types import ConfigError, ParamSpec

ROOT = Path(__file__).parents[2]
BASE, WIDTH = 16, 64
GROWTH = WIDTH / BASE
SMALL = override(
    ModelConfig(),
    {
        "vocab_size": 32,
        "num_layers": 2,
        "max_length": 8,
        "embed_dim": WIDTH,
        "attention.num_heads": 8,
        "mlp.hidden_dim": 96,
        "embedding.tied": False,
    },
)
MUP = override(SMALL, {"parametrization": "mup", "parametrization.base_width": BASE})


def named(tree):
    flat = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in flat}


@functools.cache
def parameters(config):
    return build(config).init(jax.random.key(0))


MATRICES = {"attention/query", "attention/key", "attention/value", "attention/out"} | {
    f"mlp/{name}" for name in ("gate", "up", "down")
}


def is_of_a_layer(name):
    return any(f"/{matrix}/" in name for matrix in MATRICES)


def test_initial_values_are_the_standard_ones_over_the_root_of_the_growth():
    """Table 3: 1/fan_in for matrices; embeddings and the output projection (table 8) as they are"""
    standard = named(parameters(SMALL))
    scaled = named(parameters(MUP))
    assert standard.keys() == scaled.keys()
    assert sum(map(is_of_a_layer, scaled)) == len(MATRICES)
    for name, values in scaled.items():
        factor = GROWTH**-0.5 if is_of_a_layer(name) else 1
        np.testing.assert_allclose(values, standard[name] * factor, rtol=1e-6, err_msg=name)


def test_the_base_model_is_the_standard_one_bit_for_bit():
    base = override(MUP, {"parametrization.base_width": WIDTH})
    for name, values in named(parameters(base)).items():
        np.testing.assert_array_equal(values, named(parameters(SMALL))[name], err_msg=name)
    assert base.logit_scale == 1 and base.attention_scale == SMALL.attention_scale


def spec(*axes, contract, role="matrix"):
    return ParamSpec(axes, contract, role)


TABLE = {
    "hidden": (spec("layers", "embed", "mlp", contract=(1,)), 4**-0.5, 1 / 4, 1),
    "heads in": (spec("layers", "embed", "heads", "head_dim", contract=(1,)), 4**-0.5, 1 / 4, 1),
    "heads out": (spec("layers", "heads", "head_dim", "embed", contract=(1, 2)), 0.5, 1 / 4, 1),
    "experts": (spec("layers", "expert", "mlp", "expert_embed", contract=(2,)), 0.5, 1 / 4, 1),
    "router": (spec("layers", "embed", "router", contract=(1,), role="router"), 1 / 4, 1 / 4, 0.5),
    "to a latent": (spec("layers", "embed", "to_latent", contract=(1,)), 1 / 4, 1 / 4, 0.5),
    "of a latent": (spec("layers", "latent", "heads", "head_dim", contract=(1,)), 1, 1, 1),
    "low-rank a": (spec("embed", None, contract=(0,)), 1 / 4, 1 / 4, 0.5),
    "low-rank b": (spec(None, "mlp", contract=(0,)), 1, 1, 1),
    "embedding": (spec("vocab", "embed", contract=(1,), role="embedding"), 1, 1, None),
    "output": (spec("embed", "vocab", contract=(0,), role="head"), 1, 1, None),
    "positions": (spec("position", "embed", contract=(1,), role="position"), 1, 1, None),
    "norm": (spec("layers", "norm", contract=(), role="norm"), 1, 1, None),
    "bias": (spec("layers", "mlp", contract=(), role="bias"), 1, 1, None),
}


@pytest.mark.parametrize("name", TABLE)
def test_the_table(name):
    parameter, initial, adam, orthogonalized = TABLE[name]
    assert initial_scale(parameter, MUP.growth) == pytest.approx(initial)
    assert adam_rate_scale(parameter, MUP.growth) == pytest.approx(adam)
    if orthogonalized is not None:
        assert muon_rate_scale(parameter, MUP.growth) == pytest.approx(orthogonalized)
    assert initial_scale(parameter, {}) == adam_rate_scale(parameter, {}) == 1


@pytest.mark.parametrize("update", ["adamw", "lion", "adafactor", "muon"])
def test_rates_of_matrices_fall_and_weight_decay_does_not(update):
    """The update of a step is that of the standard rule, times 1/growth but for its decay."""
    params = {
        "layers": {"up": {"kernel": jnp.full((1, 4, 8), 2.0)}, "router": jnp.full((1, 4, 2), 2.0)},
        "embed": jnp.full((6, 4), 2.0),
    }
    specs = {
        "layers": {"up": {"kernel": TABLE["hidden"][0]}, "router": TABLE["router"][0]},
        "embed": TABLE["embedding"][0],
    }
    grads = jax.tree.map(lambda p: jax.random.normal(jax.random.key(3), p.shape), params)
    options = {"update": update, "schedule": "constant", "warmup_steps": 0}
    found = {}
    for decay in (0.0, 0.5):
        for growth in ({}, MUP.growth):
            config = override(OptimizerConfig(), {**options, "weight_decay": decay})
            rule = make_optimizer(config, 10, params, specs, growth=growth)
            step, _ = rule.update(grads, rule.init(params), params)
            found[decay, bool(growth)] = named(step)
    for name in found[0.0, True]:
        index = 3 if update == "muon" and name.startswith("layers") else 2
        kind = {"layers/up/kernel": "hidden", "layers/router": "router", "embed": "embedding"}[name]
        expected = TABLE[kind][index] * found[0.0, False][name]
        np.testing.assert_allclose(found[0.0, True][name], expected, rtol=1e-5, err_msg=name)
        decayed = [found[0.5, mup][name] - found[0.0, mup][name] for mup in (False, True)]
        np.testing.assert_allclose(decayed[0], decayed[1], rtol=1e-3, atol=1e-7, err_msg=name)


def test_logits_are_divided_by_the_growth():
    """Tied or not, through ``logits`` and through ``head``, which losses read."""
    for tied in (True, False):
        config = override(MUP, {"embedding.tied": tied})
        model = build(config)
        plain = build(override(config, {"parametrization": "standard"}))
        params = parameters(config)
        hidden = jax.random.normal(jax.random.key(1), (2, 3, WIDTH))
        expected = plain.logits(params, hidden) / GROWTH
        np.testing.assert_allclose(model.logits(params, hidden), expected, rtol=1e-5, atol=1e-6)
        kernel = plain.head(params).kernel / GROWTH
        np.testing.assert_allclose(model.head(params).kernel, kernel, rtol=1e-6)


def test_scores_are_divided_by_the_width_of_a_head():
    wide = override(MUP, {"attention.num_heads": 2, "parametrization.base_head_dim": 8})
    assert wide.head_dim == 32
    assert wide.attention_scale == pytest.approx(8**0.5 / 32)
    assert override(wide, {"attention.scale": 1.0}).attention_scale == pytest.approx(8 / 32)
    assert MUP.attention_scale == SMALL.attention_scale
    same = override(wide, {"parametrization.base_head_dim": 32})
    assert same.attention_scale == same.head_dim**-0.5


def test_what_is_not_defined_is_refused_by_name():
    with pytest.raises(ConfigError, match="scale_by_width is True .* model.embedding.scale .* 4$"):
        validate_model(override(MUP, {"embedding.scale_by_width": True}))
    latent = {"attention": "latent", "attention.kv_latent": 8, "attention.rope_dim": 4}
    with pytest.raises(ConfigError, match="base_head_dim is 8 and model.attention 'latent'"):
        validate_model(override(MUP, {**latent, "parametrization.base_head_dim": 8}))
    run = override(Config(model=MUP), {"optimizer.update": "sgd", "data.seq_length": 8})
    with pytest.raises(ConfigError, match="optimizer.update sgd has no learning rates for it"):
        validate(run)
    with pytest.raises(ConfigError, match="sgd has no learning rates"):
        make_optimizer(run.optimizer, 10, {}, {}, growth=MUP.growth)


def test_a_plan_has_the_same_arrays():
    for m in (MUP, SMALL):
        assert shapes(m, OptimizerConfig()) == shapes(SMALL, OptimizerConfig())


def test_saved_configs_of_before_have_the_standard_parametrization():
    saved = to_json(Config(model=SMALL))
    assert saved["model"].pop("parametrization") == {"kind": "standard"}
    assert from_json(saved).model == SMALL
    assert from_json(to_json(Config(model=MUP))).model == MUP


def test_the_coordinate_check():
    """From the base width to four times that: outputs move as far with muP, and further without."""
    moved = runpy.run_path(str(ROOT / "examples/coordinate_check.py"))["moved"]
    # At the base width the two are the same model.
    narrow = np.array(moved(64, "mup"))
    flat = np.array(moved(256, "mup")) / narrow
    growing = np.array(moved(256, "standard")) / narrow
    assert (flat < 1.25).all() and (flat > 0.75).all()
    assert (growing > 1.8).all()


def test_rules_for_models_of_others():
    """Specs written by hand for kernels that are not stacked."""
    specs = {
        "up": spec("embed", "mlp", contract=(0,)),
        "bias": spec("mlp", contract=(), role="bias"),
    }
    params = {"up": jnp.eye(3, 4), "bias": jnp.ones(4)}
    grads = {"up": jax.random.normal(jax.random.key(0), (3, 4)), "bias": jnp.ones(4)}
    rule = muon(
        0.1,
        specs,
        adam_rate=0.01,
        weight_decay=0.5,
        mask=decay_mask(specs),
        orthogonalized=is_matrix,
    )
    updates, _ = rule.update(grads, rule.init(params), params)
    turned = -(updates["up"] + 0.1 * 0.5 * params["up"]) / 0.1 / (4 / 3) ** 0.5
    assert np.abs(np.linalg.svd(turned, compute_uv=False) - 1).max() < 0.5
    np.testing.assert_allclose(updates["bias"], -0.01 * np.ones(4), rtol=1e-5)
    scaled = adamw(0.1, weight_decay=0.0, rate_scales=adam_rate_scales(specs, {"embed": 4.0}))
    updates, _ = scaled.update(grads, scaled.init(params), params)
    np.testing.assert_allclose(updates["up"], -0.025 * np.sign(grads["up"]), rtol=1e-4)
    np.testing.assert_allclose(updates["bias"], -0.1 * np.ones(4), rtol=1e-4)
    more = {**params, "other": jnp.ones(1)}
    with pytest.raises(ConfigError, match="'other'.* has no spec"):
        scaled.update(more, scaled.init(more), more)
