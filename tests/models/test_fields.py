"""Every field of ModelConfig does something, parameter counts are those of published models, bad
configs are named.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.config import ExecutionConfig, ModelConfig, override
from llm_jax.config.sections import settings, value_of
from llm_jax.models import build, resolve_execution
from llm_jax.types import Batch, ConfigError, Tokens

BASE = override(
    ModelConfig(),
    {
        "vocab_size": 16,
        "num_layers": 2,
        "embed_dim": 16,
        "attention.num_heads": 2,
        "attention.num_kv_heads": 1,
        "mlp.hidden_dim": 24,
        "max_length": 64,
        "init_std": 0.3,
    },
)
# Heads and widths of an MLP at their defaults, which recurrent layers do not have.
RECURRENT = {
    "recurrent": "lstm",
    "embed_dim": 24,
    "attention.num_heads": ModelConfig().attention.num_heads,
    "attention.num_kv_heads": ModelConfig().attention.num_kv_heads,
    "mlp.hidden_dim": ModelConfig().mlp.hidden_dim,
}
EXPERTS = {"experts.count": 4}
GROUPS = EXPERTS | {"experts.groups.count": 2, "experts.per_token": 1}
LATENT = {
    "attention": "latent",
    "attention.kv_latent": 12,
    "attention.rope_dim": 4,
}
LAYER, ROPE3, YARN = (
    {"norm": "layer"},
    {"positions.scaling": "llama3"},
    {"positions.scaling": "yarn"},
)

# field -> (what must hold for it to be read, another value, whether the parameter tree or the
# outputs change)
FIELDS = {
    "vocab_size": ({}, 17, "tree"),
    "num_layers": ({}, 3, "tree"),
    "embed_dim": ({}, 32, "tree"),
    "attention.num_heads": ({}, 4, "tree"),
    "attention.num_kv_heads": ({}, 2, "tree"),
    "attention.head_dim": ({}, 6, "tree"),
    "attention.value_dim": ({}, 6, "tree"),
    "attention": ({"attention.rope_dim": 4} | LATENT, "multi_head", "tree"),
    "attention.kv_latent": (LATENT, 10, "tree"),
    "attention.q_latent": (LATENT, 10, "tree"),
    "attention.rope_dim": (LATENT, 2, "tree"),
    "mlp.hidden_dim": ({}, 8, "tree"),
    "recurrent": (RECURRENT, "none", "tree"),
    "recurrent.hidden_dim": (RECURRENT, 8, "tree"),
    "recurrent.residual": (RECURRENT, False, "tree"),
    "recurrent.forget_bias": (RECURRENT, 2.0, "initial values"),
    "first_layers": ({}, "on", "tree"),
    "first_layers.count": ({"num_layers": 3, "first_layers": "on"}, 2, "tree"),
    "first_layers.mlp_dim": ({"first_layers.count": 1}, 8, "tree"),
    "first_layers.attention_norm": ({"first_layers.count": 1}, False, "tree"),
    "max_length": ({"positions": "learned"}, 128, "tree"),
    "causal": ({}, False, "outputs"),
    "encoder": ({}, "on", "tree"),
    "encoder.num_layers": ({"encoder": "on"}, 2, "tree"),
    "encoder.mlp_dim": ({"encoder.num_layers": 2}, 8, "tree"),
    "encoder.start_token": ({"encoder.num_layers": 2}, 3, "decoding"),
    "parametrization": ({}, "mup", "outputs"),
    "parametrization.base_width": ({"parametrization": "mup"}, 8, "outputs"),
    "parametrization.base_head_dim": ({"parametrization": "mup"}, 4, "outputs"),
    "norm": ({}, "layer", "outputs"),
    "norm.eps": ({}, 0.1, "outputs"),
    "norm.bias": (LAYER, True, "tree"),
    "norm.unit_offset": ({}, True, "outputs"),
    "norm.position": ({}, "post", "outputs"),
    "norm.attention": ({}, False, "tree"),
    "attention.qk_norm": ({"attention.qk_norm": "head"}, "all", "tree"),
    "positions": ({}, "sinusoidal", "outputs"),
    "positions.offset": ({"positions": "learned"}, 2, "tree"),
    "positions.buckets": ({"positions": "relative"}, 16, "tree"),
    "positions.max_distance": ({"positions": "relative", "positions.buckets": 4}, 3, "outputs"),
    "positions.theta": ({}, 100.0, "outputs"),
    "positions.windowed_theta": ({"attention.window_pattern": (4, 0)}, 100.0, "outputs"),
    "positions.fraction": ({}, 0.5, "outputs"),
    "positions.pattern": ({}, (True, False), "outputs"),
    "positions.scaling": (
        {"positions.scaling": "ntk", "positions.scaling.factor": 2.0},
        "linear",
        "outputs",
    ),
    "positions.scaling.factor": ({"positions.scaling": "ntk"}, 2.0, "outputs"),
    "positions.scaling.original_length": (ROPE3 | {"positions.scaling.factor": 2.0}, 16, "outputs"),
    "positions.scaling.low_frequency": (
        ROPE3 | {"positions.scaling.factor": 2.0, "positions.scaling.original_length": 16},
        0.1,
        "outputs",
    ),
    "positions.scaling.high_frequency": (
        ROPE3 | {"positions.scaling.factor": 2.0, "positions.scaling.original_length": 16},
        2.0,
        "outputs",
    ),
    "positions.scaling.beta_fast": (
        YARN
        | {
            "positions.scaling.factor": 2.0,
            "positions.scaling.original_length": 64,
            "attention.head_dim": 32,
        },
        2.0,
        "outputs",
    ),
    "positions.scaling.beta_slow": (
        YARN
        | {
            "positions.scaling.factor": 2.0,
            "positions.scaling.original_length": 64,
            "attention.head_dim": 32,
        },
        0.01,
        "outputs",
    ),
    "positions.scaling.truncate": (
        YARN
        | {
            "positions.scaling.factor": 2.0,
            "positions.scaling.original_length": 64,
            "attention.head_dim": 32,
        },
        False,
        "outputs",
    ),
    "positions.scaling.attention_factor": (
        YARN | {"positions.scaling.factor": 2.0},
        2.0,
        "outputs",
    ),
    "positions.scaling.factors": (
        {
            "positions.scaling": "longrope",
            "positions.scaling.factor": 2.0,
            "positions.scaling.factors": (1.0,) * 4,
        },
        (1.0, 2.0, 3.0, 4.0),
        "outputs",
    ),
    "positions.scaling.short_factors": (
        {
            "positions.scaling": "longrope",
            "positions.scaling.factor": 2.0,
            "positions.scaling.factors": (1.0,) * 4,
        },
        (1.0, 2.0, 3.0, 4.0),
        "outputs",
    ),
    "attention.window_pattern": ({}, (2, 0), "outputs"),
    "attention.scale": ({}, 1.0, "outputs"),
    "attention.softcap": ({}, 0.5, "outputs"),
    "attention.sinks": ({}, True, "tree"),
    "head.softcap": ({}, 0.5, "outputs"),
    "mlp": ({}, "plain", "tree"),
    "mlp.activation": ({}, "relu", "outputs"),
    "mlp.clamp": ({}, 0.1, "outputs"),
    "mlp.up_offset": ({}, 1.0, "outputs"),
    "attention.qkv_bias": ({}, True, "tree"),
    "attention.out_bias": ({}, True, "tree"),
    "mlp.bias": ({}, True, "tree"),
    "experts": ({}, "on", "tree"),
    "experts.count": (EXPERTS, 2, "tree"),
    "experts.groups": (EXPERTS, "on", "outputs"),
    "experts.per_token": (EXPERTS, 3, "outputs"),
    "experts.shared": (EXPERTS, 1, "tree"),
    "experts.router": (EXPERTS | {"experts.normalize": False}, "sigmoid", "outputs"),
    "experts.router_bias": (EXPERTS, True, "tree"),
    "experts.groups.count": (
        EXPERTS | {"experts.groups.count": 1},
        2,
        "outputs",
    ),
    "experts.groups.per_token": (GROUPS | {"experts.per_token": 2}, 2, "outputs"),
    "experts.groups.score": (GROUPS, "best_two", "outputs"),
    "experts.normalize": (EXPERTS, False, "outputs"),
    "experts.scale": (EXPERTS, 2.0, "outputs"),
    "experts.balance": (EXPERTS, "bias", "tree"),
    "experts.balance.weight": (EXPERTS, 0.1, "terms of the loss"),
    "experts.balance.rate": (EXPERTS | {"experts.balance": "bias"}, 0.1, "optimizer"),
    "experts.router_z_loss": (EXPERTS, 0.1, "terms of the loss"),
    "parallel_residual": ({}, True, "outputs"),
    "embedding.tied": ({}, False, "tree"),
    "embedding.scale_by_width": ({}, True, "outputs"),
    "embedding.scale": ({}, 3.0, "outputs"),
    "embedding.norm": ({}, True, "tree"),
    "embedding.token_types": ({}, 2, "tree"),
    "residual_scale": ({}, 0.5, "outputs"),
    "head.scale": ({}, 0.5, "outputs"),
    "head.transform": ({}, "on", "tree"),
    "head.transform.bias": ({"head.transform": "on"}, True, "tree"),
    "head.bias": ({}, True, "tree"),
    "pooler": ({}, "on", "tree"),
    "pooler.layer": ({"pooler": "on", "head.transform": "on"}, "transform", "tree"),
    "pooler.reads": ({"pooler": "on"}, "mean", "vectors of rows"),
    "pooler.num_classes": ({"pooler": "on"}, 3, "tree"),
    "norm.final": ({}, False, "tree"),
    "init_std": ({}, 0.1, "initial values"),
    "dropout": ({}, 0.5, "training outputs"),
}


def test_the_table_has_every_field():
    assert set(FIELDS) == set(settings(ModelConfig))


@functools.cache
def model_of(config: ModelConfig):
    attention = "xla" if config.recurrent is None else "auto"
    execution = ExecutionConfig(layers="unroll", attention=attention, compute_dtype="float32")
    return build(config, execution)


@functools.cache
def shapes(config: ModelConfig):
    return jax.tree.map(lambda a: a.shape, jax.eval_shape(model_of(config).init, jax.random.key(0)))


def outputs(config: ModelConfig, params, key=None):
    tokens = jnp.array([[3, 1, 4, 1, 5, 9, 2, 6]])
    batch = Batch(
        inputs=Tokens(tokens, jnp.ones_like(tokens), jnp.arange(8)[None]),
        targets=tokens,
        loss_mask=tokens > 0,
    )
    if config.encoder:
        batch = batch._replace(encoder=jax.tree.map(lambda a: a[:, :5], batch.inputs))
    model = model_of(config)
    out = model.apply(params, batch, dropout_key=key)
    return model.logits(params, out.hidden), out.aux


def random_parameters(config: ModelConfig):
    leaves, treedef = jax.tree.flatten(shapes(config), is_leaf=lambda s: isinstance(s, tuple))
    rng = np.random.default_rng(0)
    return treedef.unflatten([jnp.asarray(rng.normal(size=s) * 0.4, jnp.float32) for s in leaves])


@functools.cache
def numbers(config: ModelConfig, training: bool):
    """Logits and terms of the loss; models of the same shapes have the same parameters."""
    key = jax.random.key(0) if training else None
    return jax.tree.map(np.asarray, outputs(config, random_parameters(config), key))


@pytest.mark.parametrize("field", FIELDS)
def test_each_field_is_read(field):
    needs, value, what = FIELDS[field]
    config = override(BASE, needs)
    other = override(config, {field: value})
    assert value_of(config, field) not in (value, None)
    if what == "tree":
        assert shapes(config) != shapes(other)
        specs = jax.tree.structure(model_of(other).specs)
        assert specs == jax.tree.structure(shapes(other), is_leaf=lambda a: isinstance(a, tuple))
        params = jax.eval_shape(model_of(other).init, jax.random.key(0))
        jax.eval_shape(functools.partial(outputs, other), params)  # it runs
        return
    assert shapes(config) == shapes(other)
    if what in ("initial values", "optimizer", "decoding", "vectors of rows"):
        # see test_initial_scale_of_projections_into_the_residual_stream, test_experts,
        # test_encoder_decoder and test_encoders
        return
    (a, before), (b, after) = (numbers(c, what == "training outputs") for c in (config, other))
    assert np.isfinite(b).all()
    if what == "terms of the loss":
        assert before != after
        return
    assert np.abs(a - b).max() > 1e-4 * np.abs(a).max()


def bias_paths(*biases, **fields):
    config = override(BASE, fields | dict.fromkeys(biases, True))
    flat = jax.tree_util.tree_flatten_with_path(
        shapes(config), is_leaf=lambda s: isinstance(s, tuple)
    )[0]
    names = {jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in flat}
    return {n for n in names if n.endswith("bias")}


def test_each_bias_switch_adds_its_own_biases():
    assert bias_paths() == set()
    assert bias_paths("attention.qkv_bias") == {
        f"layers/attention/{n}/bias" for n in ("query", "key", "value")
    }
    assert bias_paths("attention.out_bias") == {"layers/attention/out/bias"}
    assert bias_paths("mlp.bias") == {f"layers/mlp/{n}/bias" for n in ("gate", "up", "down")}
    assert bias_paths("mlp.bias", **EXPERTS) == {
        f"layers/mlp/{n}/bias" for n in ("gate", "up", "down")
    }
    assert bias_paths("experts.router_bias", **EXPERTS) == {"layers/mlp/router/bias"}
    assert bias_paths("attention.qkv_bias", **LATENT) == {
        f"layers/attention/{n}/bias" for n in ("latent", "rotated")
    }
    assert bias_paths("attention.qkv_bias", **LATENT, **{"attention.q_latent": 8}) == {
        f"layers/attention/{n}/bias" for n in ("query_latent", "latent", "rotated")
    }
    assert bias_paths("norm.bias", norm="layer") == {
        "layers/attention_norm/bias",
        "layers/mlp_norm/bias",
        "final_norm/bias",
    }


def test_initial_scale_of_projections_into_the_residual_stream():
    config = override(
        BASE,
        {
            "embed_dim": 64,
            "mlp.hidden_dim": 256,
            "num_layers": 8,
            "init_std": 0.05,
            "embedding.tied": False,
        },
    )
    params = jax.jit(model_of(config).init)(jax.random.key(0))

    def std(a):
        return float(np.std(a))

    layers = params["layers"]
    for kernel in (
        layers["attention"]["query"],
        layers["mlp"]["gate"],
        layers["mlp"]["up"],
        params["head"],
    ):
        assert std(kernel["kernel"]) == pytest.approx(0.05, rel=0.05)
    for kernel in (layers["attention"]["out"], layers["mlp"]["down"]):
        assert std(kernel["kernel"]) == pytest.approx(0.05 / 4, rel=0.05)  # sqrt(2 * 8)
    kernels = np.asarray(layers["mlp"]["up"]["kernel"])
    assert all((kernels[0] != kernels[l]).any() for l in range(1, 8))


def test_the_tree_does_not_depend_on_execution():
    trees = [
        jax.eval_shape(
            build(BASE, ExecutionConfig(layers=l, remat=r, compute_dtype=d)).init, jax.random.key(0)
        )
        for l, r, d in [
            ("unroll", "none", "float32"),
            ("scan", "full", "float32"),
            ("scan", "dots", "bfloat16"),
        ]
    ]
    assert trees[0] == trees[1] == trees[2]


def test_a_backend_that_cannot_go_round_a_ring_is_refused():
    with pytest.raises(
        ConfigError, match="'xla' cannot go round the ring of mesh.context 4; use blockwise"
    ):
        resolve_execution(ExecutionConfig(attention="xla"), BASE, "cpu", context=4)
    assert (
        resolve_execution(
            ExecutionConfig(attention="xla", context="all_to_all"), BASE, "cpu", context=4
        ).attention
        == "xla"
    )


def test_auto_picks_by_platform():
    auto, deep = ExecutionConfig(), dataclasses.replace(BASE, num_layers=13)

    def get(m, p):
        return (lambda e: (e.attention, e.layers))(resolve_execution(auto, m, p))

    assert get(BASE, "cpu") == ("xla", "unroll") and get(deep, "cpu") == ("xla", "scan")
    assert resolve_execution(auto, BASE, "tpu", context=4).attention == "blockwise"
    assert get(BASE, "gpu") == ("cudnn", "scan") and get(BASE, "tpu") == ("splash", "scan")
    assert get(override(BASE, {"attention.softcap": 5.0}), "gpu") == ("xla", "scan")
    assert get(override(BASE, {"attention.sinks": True}), "gpu") == ("xla", "scan")
    assert get(override(BASE, {"attention.value_dim": 16}), "gpu") == ("xla", "scan")
    assert get(override(BASE, {"attention.value_dim": 16, "attention.sinks": True}), "tpu") == (
        "splash",
        "scan",
    )
    assert (
        get(dataclasses.replace(BASE, causal=False), "tpu")[0]
        == get(override(BASE, {"encoder.num_layers": 1}), "tpu")[0]
        == "xla"
    )
    assert get(override(BASE, {"positions": "relative"}), "gpu")[0] == "xla"
    dtypes = {p: resolve_execution(auto, BASE, p).compute_dtype for p in ("cpu", "gpu", "tpu")}
    assert dtypes == {"cpu": "float32", "gpu": "bfloat16", "tpu": "bfloat16"}


@pytest.mark.parametrize(
    "fields, attention, message",
    [
        ({}, "cudnn", "'cudnn' takes bfloat16 or float16, not float32"),
        (
            {"attention.softcap": 5.0},
            "dot_product",
            "cannot honour a soft cap on the scores; .* or use execution.attention xla",
        ),
        (
            {"positions": "relative"},
            "blockwise",
            "'blockwise' cannot add a bias to the scores; .* use execution.attention xla",
        ),
        (
            {"causal": False},
            "splash",
            "'splash' takes only masks that are causal; .* use execution.attention xla",
        ),
        (
            {"encoder.num_layers": 1},
            "splash",
            "'splash' takes only masks that are causal; .* use execution.attention xla",
        ),
        (
            {"attention.sinks": True},
            "dot_product",
            "'dot_product' cannot honour attention sinks; .* use execution.attention xla",
        ),
        (
            {"attention.value_dim": 4},
            "dot_product",
            "'dot_product' cannot honour values of another width than keys; set .* to 0",
        ),
    ],
)
def test_a_backend_that_cannot_is_refused_before_anything_runs(fields, attention, message):
    with pytest.raises(ValueError, match=message):
        build(override(BASE, fields), ExecutionConfig(attention=attention))


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"vocab_size": 0}, "model.vocab_size is 0"),
        (
            {"attention.num_kv_heads": 3, "attention.num_heads": 4},
            "num_kv_heads is 3, which does not divide model.attention.num_heads 4",
        ),
        ({"embed_dim": 17}, "model.embed_dim 17 is not a multiple of model.attention.num_heads 2"),
        (
            {"attention.head_dim": 5},
            "even width; model.attention.head_dim 5 times model.positions.fraction 1.0 is 5",
        ),
        (
            {"positions.fraction": 1.5},
            "positions.fraction is 1.5; it must be more than 0 and at most 1",
        ),
        ({"positions.pattern": ()}, "positions.pattern is empty"),
        (
            {"positions.scaling": "longrope", "positions.scaling.factors": (1.0,)},
            "scaling.factors has 1 numbers; longrope expects 4",
        ),
        ({"attention.value_dim": -1}, "model.attention.value_dim is -1; it must be at least 0"),
        ({"mlp.clamp": -1.0}, "model.mlp.clamp is -1.0; it must be at least 0"),
        (
            LATENT | {"attention.rope_dim": 0},
            (
                "rope_dim is 0; with latent attention it must be from 1 to less than the"
                " model.attention.head_dim 8"
            ),
        ),
        (
            LATENT | {"attention.rope_dim": 8},
            "model.attention.rope_dim is 8; with latent attention",
        ),
        (LATENT | {"attention.rope_dim": 3}, "even width; model.attention.rope_dim is 3"),
        (
            LATENT | {"attention.num_kv_heads": 1},
            "num_kv_heads was set .* it is read only when attention is 'multi_head'",
        ),
        (
            LATENT | {"attention.qk_norm": "head"},
            "qk_norm was set .* it is read only when attention is 'multi_head'",
        ),
        (
            LATENT | {"positions.fraction": 0.5},
            "positions.fraction is 0.5; with latent attention model.attention.rope_dim sets the",
        ),
        ({"encoder.num_layers": 0}, "encoder.num_layers is 0; it must be at least 1"),
        (
            {"encoder.num_layers": 1, "encoder.mlp_dim": -1},
            "encoder.mlp_dim is -1; it must be at least 0",
        ),
        (
            {"encoder.num_layers": 1, "causal": False},
            "encoder.num_layers is 1 and model.causal False",
        ),
        (
            {"encoder.num_layers": 1, "parallel_residual": True},
            "parallel_residual has no place for attention to it; set it to False",
        ),
        (
            {"encoder.num_layers": 1, "experts.count": 2},
            "only models of one stack have model.experts; set model.experts to none",
        ),
        (
            {"encoder.num_layers": 1, "embedding.token_types": 2},
            "only models of one stack have model.embedding.token_types; set .* to 0",
        ),
        (
            {"encoder.num_layers": 1, "first_layers.count": 1},
            "only models of one stack have model.first_layers; set model.first_layers to none",
        ),
        (
            {"encoder.num_layers": 1, "pooler.layer": "tanh"},
            "only models of one stack have model.pooler; set model.pooler to none",
        ),
        (
            {"encoder.num_layers": 1, "encoder.start_token": 16},
            "start_token is 16; it must be less than model.vocab_size 16",
        ),
        (
            {"pooler.layer": "transform"},
            "model.pooler.layer is 'transform' and model.head.transform 'none'",
        ),
        (
            {"positions": "relative", "positions.buckets": 1},
            "positions.buckets is 1; it must be at least 2",
        ),
        (
            {"positions": "relative", "positions.buckets": 7, "causal": False},
            "positions.buckets is 7; it must be at least 4 and even",
        ),
        (
            {"positions": "relative", "positions.max_distance": 16},
            "positions.max_distance is 16; it must be more than half of the 32",
        ),
        (
            {
                "first_layers.count": 1,
                "first_layers.attention_norm": False,
                "norm.position": "post",
            },
            (
                "first_layers.attention_norm is False and model.norm.position 'post', without a"
                " norm before attention"
            ),
        ),
        (
            {"first_layers.count": 2},
            "first_layers.count is 2; it must be less than model.num_layers, 2",
        ),
        (
            GROUPS | {"experts.groups.count": 3},
            "groups.count is 3; it must divide model.experts.count, 4",
        ),
        (
            GROUPS | {"experts.groups.per_token": 3},
            "groups.per_token is 3; it must be from 1 to model.experts.groups.count, 2",
        ),
        (
            GROUPS | {"experts.per_token": 3},
            "experts.per_token is 3, and model.experts.groups.per_token 1 groups have 2 experts",
        ),
        (
            GROUPS | {"experts.groups.count": 4, "experts.groups.score": "best_two"},
            "groups.score is 'best_two', and model.experts.groups.count 4 leaves one",
        ),
        (
            {"positions.windowed_theta": 100.0},
            (
                r"windowed_theta is 100.0, and no layer of model.attention.window_pattern \(0,\)"
                r" has a window"
            ),
        ),
    ],
)
def test_an_architecture_that_cannot_be_built_is_named(fields, message):
    with pytest.raises(ConfigError, match=message):
        build(override(BASE, fields))


def test_an_unknown_remat_policy_is_named_when_building():
    with pytest.raises(
        ConfigError,
        match=(
            r"execution\.remat is 'everything'; use none, full, dots, names:a,b or offload:a,b with"
            r" names"
        ),
    ):
        build(BASE, ExecutionConfig(remat="everything"))
