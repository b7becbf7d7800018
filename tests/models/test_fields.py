"""Every field of ModelConfig does something, parameter counts are those of published models, bad
configs are named.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.config import ExecutionConfig, ModelConfig
from llm_jax.models import build, resolve_execution
from llm_jax.types import Batch, ConfigError, Tokens

BASE = ModelConfig(
    vocab_size=16,
    num_layers=2,
    embed_dim=16,
    num_heads=2,
    num_kv_heads=1,
    mlp_dim=24,
    max_length=64,
    init_std=0.3,
)
EXPERTS = {"num_experts": 4}
GROUPS = EXPERTS | {"expert_groups": 2, "experts_per_token": 1}
LATENT = {"num_kv_heads": 0, "kv_latent": 12, "rope_dim": 4}
LAYER, ROPE3, YARN = {"norm": "layer"}, {"rope_scaling": "llama3"}, {"rope_scaling": "yarn"}

# field -> (what must hold for it to be read, another value, whether the parameter tree or the
# outputs change)
FIELDS = {
    "vocab_size": ({}, 17, "tree"),
    "num_layers": ({}, 3, "tree"),
    "embed_dim": ({}, 32, "tree"),
    "num_heads": ({}, 4, "tree"),
    "num_kv_heads": ({}, 2, "tree"),
    "head_dim": ({}, 6, "tree"),
    "value_dim": ({}, 6, "tree"),
    "kv_latent": ({"num_kv_heads": 0, "rope_dim": 4}, 12, "tree"),
    "q_latent": (LATENT, 10, "tree"),
    "rope_dim": (LATENT, 2, "tree"),
    "mlp_dim": ({}, 8, "tree"),
    "first_layers": ({}, 1, "tree"),
    "first_mlp_dim": ({"first_layers": 1}, 8, "tree"),
    "first_attention_norm": ({"first_layers": 1}, False, "tree"),
    "max_length": ({"positions": "learned"}, 128, "tree"),
    "causal": ({}, False, "outputs"),
    "encoder_layers": ({}, 2, "tree"),
    "encoder_mlp_dim": ({"encoder_layers": 2}, 8, "tree"),
    "start_token": ({"encoder_layers": 2}, 3, "decoding"),
    "norm": ({}, "layer", "outputs"),
    "norm_eps": ({}, 0.1, "outputs"),
    "norm_bias": (LAYER, True, "tree"),
    "norm_unit_offset": ({}, True, "outputs"),
    "norm_position": ({}, "post", "outputs"),
    "attention_norm": ({}, False, "tree"),
    "qk_norm": ({}, True, "tree"),
    "qk_norm_width": ({"qk_norm": True}, "all", "tree"),
    "positions": ({}, "sinusoidal", "outputs"),
    "position_offset": ({"positions": "learned"}, 2, "tree"),
    "relative_buckets": ({"positions": "relative"}, 16, "tree"),
    "relative_max_distance": ({"positions": "relative", "relative_buckets": 4}, 3, "outputs"),
    "rope_theta": ({}, 100.0, "outputs"),
    "rope_theta_windowed": ({"window_pattern": (4, 0)}, 100.0, "outputs"),
    "rope_fraction": ({}, 0.5, "outputs"),
    "rope_pattern": ({}, (True, False), "outputs"),
    "rope_scaling": ({"rope_factor": 2.0}, "linear", "outputs"),
    "rope_factor": ({"rope_scaling": "ntk"}, 2.0, "outputs"),
    "rope_original_length": (ROPE3 | {"rope_factor": 2.0}, 16, "outputs"),
    "rope_low_frequency": (
        ROPE3 | {"rope_factor": 2.0, "rope_original_length": 16},
        0.1,
        "outputs",
    ),
    "rope_high_frequency": (
        ROPE3 | {"rope_factor": 2.0, "rope_original_length": 16},
        2.0,
        "outputs",
    ),
    "rope_beta_fast": (
        YARN | {"rope_factor": 2.0, "rope_original_length": 64, "head_dim": 32},
        2.0,
        "outputs",
    ),
    "rope_beta_slow": (
        YARN | {"rope_factor": 2.0, "rope_original_length": 64, "head_dim": 32},
        0.01,
        "outputs",
    ),
    "rope_truncate": (
        YARN | {"rope_factor": 2.0, "rope_original_length": 64, "head_dim": 32},
        False,
        "outputs",
    ),
    "rope_attention_factor": (YARN | {"rope_factor": 2.0}, 2.0, "outputs"),
    "rope_factors": (
        {"rope_scaling": "longrope", "rope_factor": 2.0, "rope_factors": (1.0,) * 4},
        (1.0, 2.0, 3.0, 4.0),
        "outputs",
    ),
    "rope_short_factors": (
        {"rope_scaling": "longrope", "rope_factor": 2.0, "rope_factors": (1.0,) * 4},
        (1.0, 2.0, 3.0, 4.0),
        "outputs",
    ),
    "window_pattern": ({}, (2, 0), "outputs"),
    "attention_scale": ({}, 1.0, "outputs"),
    "attention_softcap": ({}, 0.5, "outputs"),
    "attention_sinks": ({}, True, "tree"),
    "logit_softcap": ({}, 0.5, "outputs"),
    "mlp": ({}, "plain", "tree"),
    "activation": ({}, "relu", "outputs"),
    "mlp_clamp": ({}, 0.1, "outputs"),
    "mlp_up_offset": ({}, 1.0, "outputs"),
    "qkv_bias": ({}, True, "tree"),
    "out_bias": ({}, True, "tree"),
    "mlp_bias": ({}, True, "tree"),
    "num_experts": ({}, 4, "tree"),
    "experts_per_token": (EXPERTS, 3, "outputs"),
    "shared_experts": (EXPERTS, 1, "tree"),
    "router": (EXPERTS | {"router_normalize": False}, "sigmoid", "outputs"),
    "router_bias": (EXPERTS, True, "tree"),
    "expert_groups": (EXPERTS | {"experts_per_token": 1, "group_score": "best_two"}, 2, "outputs"),
    "groups_per_token": (GROUPS | {"experts_per_token": 2}, 2, "outputs"),
    "group_score": (GROUPS, "best_two", "outputs"),
    "router_normalize": (EXPERTS, False, "outputs"),
    "router_scale": (EXPERTS, 2.0, "outputs"),
    "balance": (EXPERTS, "bias", "tree"),
    "balance_weight": (EXPERTS, 0.1, "terms of the loss"),
    "balance_rate": (EXPERTS | {"balance": "bias"}, 0.1, "optimizer"),
    "router_z_loss": (EXPERTS, 0.1, "terms of the loss"),
    "parallel_residual": ({}, True, "outputs"),
    "tied_embeddings": ({}, False, "tree"),
    "scale_embeddings": ({}, True, "outputs"),
    "embedding_scale": ({}, 3.0, "outputs"),
    "embedding_norm": ({}, True, "tree"),
    "token_types": ({}, 2, "tree"),
    "residual_scale": ({}, 0.5, "outputs"),
    "logit_scale": ({}, 0.5, "outputs"),
    "head_transform": ({}, True, "tree"),
    "head_transform_bias": ({"head_transform": True}, True, "tree"),
    "head_bias": ({}, True, "tree"),
    "pooler": ({}, "tanh", "tree"),
    "pooling": ({"pooler": "tanh"}, "mean", "vectors of rows"),
    "num_classes": ({"pooler": "tanh"}, 3, "tree"),
    "final_norm": ({}, False, "tree"),
    "init_std": ({}, 0.1, "initial values"),
    "dropout": ({}, 0.5, "training outputs"),
}


def test_the_table_has_every_field():
    assert set(FIELDS) == {f.name for f in dataclasses.fields(ModelConfig)}


@functools.cache
def model_of(config: ModelConfig):
    return build(config, ExecutionConfig(layers="unroll", attention="xla", compute_dtype="float32"))


def shapes(config: ModelConfig):
    return jax.tree.map(lambda a: a.shape, jax.eval_shape(model_of(config).init, jax.random.key(0)))


def outputs(config: ModelConfig, params, key=None):
    tokens = jnp.array([[3, 1, 4, 1, 5, 9, 2, 6]])
    batch = Batch(
        inputs=Tokens(tokens, jnp.ones_like(tokens), jnp.arange(8)[None]),
        targets=tokens,
        loss_mask=tokens > 0,
    )
    if config.encoder_layers:
        batch = batch._replace(encoder=jax.tree.map(lambda a: a[:, :5], batch.inputs))
    model = model_of(config)
    out = model.apply(params, batch, dropout_key=key)
    return model.logits(params, out.hidden), out.aux


def random_parameters(config: ModelConfig):
    leaves, treedef = jax.tree.flatten(shapes(config), is_leaf=lambda s: isinstance(s, tuple))
    rng = np.random.default_rng(0)
    return treedef.unflatten([jnp.asarray(rng.normal(size=s) * 0.4, jnp.float32) for s in leaves])


@pytest.mark.parametrize("field", FIELDS)
def test_each_field_is_read(field):
    needs, value, what = FIELDS[field]
    config = dataclasses.replace(BASE, **needs)
    other = dataclasses.replace(config, **{field: value})
    assert getattr(config, field) != value
    if what == "tree":
        assert shapes(config) != shapes(other)
        specs = jax.tree.structure(model_of(other).specs)
        assert specs == jax.tree.structure(shapes(other), is_leaf=lambda a: isinstance(a, tuple))
        jax.eval_shape(lambda params: outputs(other, params), random_parameters(other))  # it runs
        return
    assert shapes(config) == shapes(other)
    if what in ("initial values", "optimizer", "decoding", "vectors of rows"):
        # see test_initial_scale_of_projections_into_the_residual_stream, test_experts,
        # test_encoder_decoder and test_encoders
        return
    params = random_parameters(config)
    key = jax.random.key(0) if what == "training outputs" else None
    (a, before), (b, after) = (
        jax.tree.map(np.asarray, outputs(c, params, key)) for c in (config, other)
    )
    assert np.isfinite(b).all()
    if what == "terms of the loss":
        assert before != after
        return
    assert np.abs(a - b).max() > 1e-4 * np.abs(a).max()


def bias_paths(**fields):
    config = dataclasses.replace(BASE, **fields)
    flat = jax.tree_util.tree_flatten_with_path(
        shapes(config), is_leaf=lambda s: isinstance(s, tuple)
    )[0]
    names = {jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in flat}
    return {n for n in names if n.endswith("bias")}


def test_each_bias_switch_adds_its_own_biases():
    assert bias_paths() == set()
    assert bias_paths(qkv_bias=True) == {
        f"layers/attention/{n}/bias" for n in ("query", "key", "value")
    }
    assert bias_paths(out_bias=True) == {"layers/attention/out/bias"}
    assert bias_paths(mlp_bias=True) == {f"layers/mlp/{n}/bias" for n in ("gate", "up", "down")}
    assert bias_paths(mlp_bias=True, num_experts=4) == {
        f"layers/mlp/{n}/bias" for n in ("gate", "up", "down")
    }
    assert bias_paths(num_experts=4, router_bias=True) == {"layers/mlp/router/bias"}
    assert bias_paths(**LATENT, qkv_bias=True) == {
        f"layers/attention/{n}/bias" for n in ("latent", "rotated")
    }
    assert bias_paths(**LATENT, qkv_bias=True, q_latent=8) == {
        f"layers/attention/{n}/bias" for n in ("query_latent", "latent", "rotated")
    }
    assert bias_paths(norm="layer", norm_bias=True) == {
        "layers/attention_norm/bias",
        "layers/mlp_norm/bias",
        "final_norm/bias",
    }


def test_initial_scale_of_projections_into_the_residual_stream():
    config = dataclasses.replace(
        BASE, embed_dim=64, mlp_dim=256, num_layers=8, init_std=0.05, tied_embeddings=False
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
    assert get(dataclasses.replace(BASE, attention_softcap=5.0), "gpu") == ("xla", "scan")
    assert get(dataclasses.replace(BASE, attention_sinks=True), "gpu") == ("xla", "scan")
    assert get(dataclasses.replace(BASE, value_dim=16), "gpu") == ("xla", "scan")
    assert get(dataclasses.replace(BASE, value_dim=16, attention_sinks=True), "tpu") == (
        "splash",
        "scan",
    )
    assert (
        get(dataclasses.replace(BASE, causal=False), "tpu")[0]
        == get(dataclasses.replace(BASE, encoder_layers=1), "tpu")[0]
        == "xla"
    )
    assert get(dataclasses.replace(BASE, positions="relative"), "gpu")[0] == "xla"
    dtypes = {p: resolve_execution(auto, BASE, p).compute_dtype for p in ("cpu", "gpu", "tpu")}
    assert dtypes == {"cpu": "float32", "gpu": "bfloat16", "tpu": "bfloat16"}


@pytest.mark.parametrize(
    "fields, attention, message",
    [
        ({}, "cudnn", "'cudnn' takes bfloat16 or float16, not float32"),
        ({"attention_softcap": 5.0}, "dot_product", "softcap=5.0"),
        (
            {"positions": "relative"},
            "blockwise",
            "'blockwise' cannot add a bias to the scores; use backend 'xla'",
        ),
        (
            {"causal": False},
            "splash",
            "'splash' takes only masks that are causal; use backend 'xla'",
        ),
        (
            {"encoder_layers": 1},
            "splash",
            "'splash' takes only masks that are causal; use backend 'xla'",
        ),
        (
            {"attention_sinks": True},
            "dot_product",
            "'dot_product' cannot honour attention sinks; use backend 'xla'",
        ),
        (
            {"value_dim": 4},
            "dot_product",
            "'dot_product' cannot honour values of another width than keys; use backend 'xla'",
        ),
    ],
)
def test_a_backend_that_cannot_is_refused_before_anything_runs(fields, attention, message):
    with pytest.raises(ValueError, match=message):
        build(dataclasses.replace(BASE, **fields), ExecutionConfig(attention=attention))


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"vocab_size": 0}, "model.vocab_size is 0"),
        (
            {"num_kv_heads": 3, "num_heads": 4},
            "num_kv_heads is 3, which does not divide model.num_heads 4",
        ),
        ({"embed_dim": 17}, "model.embed_dim 17 is not a multiple of model.num_heads 2"),
        ({"head_dim": 5}, "even width; model.head_dim 5 times model.rope_fraction 1.0 is 5"),
        ({"rope_fraction": 1.5}, "rope_fraction is 1.5; it must be more than 0 and at most 1"),
        ({"rope_pattern": ()}, "rope_pattern is empty"),
        (
            {"rope_scaling": "longrope", "rope_factors": (1.0,)},
            "rope_factors has 1 numbers; longrope wants 4",
        ),
        ({"value_dim": -1}, "model.value_dim is -1; it must be at least 0"),
        ({"mlp_clamp": -1.0}, "model.mlp_clamp is -1.0; it must be at least 0"),
        (
            LATENT | {"rope_dim": 0},
            (
                "model.rope_dim is 0; with model.kv_latent it must be from 1 to less than the"
                " model.head_dim 8"
            ),
        ),
        (LATENT | {"rope_dim": 8}, "model.rope_dim is 8; with model.kv_latent"),
        (LATENT | {"rope_dim": 3}, "even width; model.rope_dim is 3"),
        (
            LATENT | {"num_kv_heads": 1},
            (
                "num_kv_heads is 1; with model.kv_latent each of the 2 heads has keys of its own,"
                " set it to 0"
            ),
        ),
        (
            LATENT | {"qk_norm": True},
            "qk_norm is True; with model.kv_latent the latents are what has norms, set it to False",
        ),
        (
            LATENT | {"rope_fraction": 0.5},
            (
                "rope_fraction is 0.5; with model.kv_latent model.rope_dim says what is rotated,"
                " set it to 1"
            ),
        ),
        ({"encoder_layers": -1}, "encoder_layers is -1; it must be at least 0"),
        (
            {"encoder_layers": 1, "encoder_mlp_dim": -1},
            "encoder_mlp_dim is -1; it must be at least 0",
        ),
        ({"encoder_layers": 1, "causal": False}, "encoder_layers is 1 and model.causal False"),
        (
            {"encoder_layers": 1, "parallel_residual": True},
            "parallel_residual has no place for attention to it; set it to False",
        ),
        ({"encoder_layers": 1, "num_experts": 2}, "encoder_layers is 1 and model.num_experts 2"),
        ({"encoder_layers": 1, "token_types": 2}, "encoder_layers is 1 and model.token_types 2"),
        ({"encoder_layers": 1, "first_layers": 1}, "encoder_layers is 1 and model.first_layers 1"),
        ({"encoder_layers": 1, "pooler": "tanh"}, "encoder_layers is 1 and model.pooler 'tanh'"),
        (
            {"encoder_layers": 1, "start_token": 16},
            "start_token is 16; it must be less than model.vocab_size 16",
        ),
        ({"num_classes": 2}, "num_classes is 2 and model.pooler none"),
        ({"pooler": "transform"}, "model.pooler is 'transform' and model.head_transform False"),
        (
            {"positions": "relative", "relative_buckets": 1},
            "relative_buckets is 1; it must be at least 2",
        ),
        (
            {"positions": "relative", "relative_buckets": 7, "causal": False},
            "relative_buckets is 7; it must be at least 4 and even",
        ),
        (
            {"positions": "relative", "relative_max_distance": 16},
            "relative_max_distance is 16; it must be more than half of the 32",
        ),
        (
            {"first_layers": 1, "first_attention_norm": False, "norm_position": "post"},
            (
                "first_attention_norm is False and model.norm_position 'post', without a norm"
                " before attention"
            ),
        ),
        (
            {"first_layers": 2},
            "first_layers is 2; it must be from 0 to less than model.num_layers, 2",
        ),
        (
            GROUPS | {"expert_groups": 3},
            "expert_groups is 3; it must be positive and divide model.num_experts, 4",
        ),
        (
            GROUPS | {"groups_per_token": 3},
            "groups_per_token is 3; it must be from 1 to model.expert_groups, 2",
        ),
        (
            GROUPS | {"experts_per_token": 3},
            "experts_per_token is 3, and model.groups_per_token 1 groups have 2 experts; raise",
        ),
        (
            GROUPS | {"expert_groups": 4, "group_score": "best_two"},
            "group_score is 'best_two', and model.expert_groups 4 leaves one",
        ),
        (
            {"rope_theta_windowed": 100.0},
            (
                r"rope_theta_windowed is 100.0, and no layer of model.window_pattern \(0,\) has a"
                r" window"
            ),
        ),
    ],
)
def test_an_architecture_that_cannot_be_built_is_named(fields, message):
    with pytest.raises(ConfigError, match=message):
        build(dataclasses.replace(BASE, **fields))


def test_an_unknown_remat_policy_is_named_when_building():
    with pytest.raises(
        ConfigError,
        match=(
            r"execution\.remat is 'everything'; use none, full, dots, names:a,b or offload:a,b with"
            r" names"
        ),
    ):
        build(BASE, ExecutionConfig(remat="everything"))
