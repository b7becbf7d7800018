"""Models of several mechanisms at once, as DeepSeek-V3 and gpt-oss are: decoding, ways of running,
8 devices; and stacks of layers.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pairwise import parametrize
from parameters import random_parameters

from llm_jax.config import DecodeConfig, ExecutionConfig, MeshConfig, ModelConfig, override
from llm_jax.decode import Generator
from llm_jax.decode.parity import TOLERANCE, check_parity
from llm_jax.models import build, zigzag_order
from llm_jax.ops.weights import Joined, JoinedPart, OutputFirst
from llm_jax.sharding import make_mesh, parameter_shardings
from llm_jax.types import Batch, Tokens

BASE = override(
    ModelConfig(),
    {
        "vocab_size": 64,
        "num_layers": 3,
        "embed_dim": 32,
        "attention.num_heads": 4,
        "mlp.hidden_dim": 16,
        "max_length": 128,
        "embedding.tied": False,
        "experts.count": 8,
        "experts.per_token": 3,
    },
)
MODELS = {
    # So narrow that decoding absorbs keys and values.
    "deepseek": override(
        BASE,
        {
            "attention.head_dim": 6,
            "attention.value_dim": 4,
            "attention": "latent",
            "attention.kv_latent": 24,
            "attention.q_latent": 16,
            "attention.rope_dim": 4,
            "first_layers.count": 1,
            "first_layers.mlp_dim": 40,
            "experts.shared": 1,
            "experts.router": "sigmoid",
            "experts.scale": 2.5,
            "experts.balance": "bias",
            "experts.groups.count": 4,
            "experts.groups.per_token": 2,
            "experts.groups.score": "best_two",
        },
    ),
    "gpt-oss": override(
        BASE,
        {
            "num_layers": 2,
            "attention.num_kv_heads": 2,
            "attention.sinks": True,
            "attention.qkv_bias": True,
            "attention.out_bias": True,
            "mlp.bias": True,
            "experts.router_bias": True,
            "mlp.activation": "quick_gelu",
            "mlp.clamp": 0.5,
            "mlp.up_offset": 1.0,
            "attention.window_pattern": (5, 0),
        },
    ),
}
B, T = 8, 16


@functools.cache
def made(name: str, layers: str = "unroll", attention: str = "xla", **fields):
    """The model, and parameters off their initial values."""
    config = override(MODELS[name], fields)
    model = build(
        config, ExecutionConfig(layers=layers, attention=attention, compute_dtype="float32")
    )
    return model, random_parameters(model)


def batch():
    """Rows of two documents."""
    tokens = np.random.default_rng(0).integers(0, 64, (B, T + 1)).astype(np.int32)
    at, second = (
        np.broadcast_to(np.arange(T), (B, T)),
        np.arange(T)[None] >= np.arange(4, 4 + B)[:, None],
    )
    positions = np.where(second, at - np.arange(4, 4 + B)[:, None], at).astype(np.int32)
    return Batch(
        inputs=Tokens(tokens[:, :-1], 1 + second.astype(np.int32), positions),
        targets=tokens[:, 1:],
        loss_mask=np.ones((B, T), bool),
    )


def loss(model, params, batch, key=None):
    out = model.apply(params, batch, dropout_key=key)
    logits = jax.nn.log_softmax(model.logits(params, out.hidden))
    chosen = jnp.take_along_axis(logits, jnp.asarray(batch.targets)[..., None], -1)
    return sum(out.aux.values(), -jnp.sum(chosen) / B / T)


def loss_and_gradient(model, params, key=None):
    return jax.jit(jax.value_and_grad(functools.partial(loss, model)))(params, batch(), key)


@functools.cache
def expected(name):
    """What every other way of running must give: layers written out, on one device."""
    return loss_and_gradient(*made(name))


def assert_same(a, b, tolerance=2e-5):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(
            x, y, rtol=tolerance, atol=tolerance * max(1.0, float(np.abs(y).max()))
        )


@parametrize(
    "name, layers",
    itertools.product(MODELS, ["unroll", "scan"]),
    by_default=[("deepseek", "unroll"), ("gpt-oss", "scan")],
)
def test_cached_decoding_is_the_full_forward_pass(name, layers):
    model, params = made(name, layers)
    rows = [
        np.random.default_rng(i).integers(0, 64, n).tolist() for i, n in enumerate((30, 21, 26))
    ]
    found = check_parity(model, params, rows, [9, 3, 14])
    assert found.compared == 21 + 18 + 12 and found.difference < TOLERANCE["float32"]


WAYS = [("scan", "xla", "dots"), ("unroll", "blockwise", "names:query,key,value")]


@parametrize(
    "name, way",
    itertools.product(MODELS, WAYS),
    by_default=[],
)
def test_every_way_of_running_gives_the_same_loss_and_gradient(name, way):
    layers, attention, remat = way
    how = ExecutionConfig(layers=layers, attention=attention, remat=remat, compute_dtype="float32")
    assert_same(loss_and_gradient(build(MODELS[name], how), made(name)[1]), expected(name))


@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_has_a_gradient_that_is_finite(name):
    for path, g in jax.tree_util.tree_flatten_with_path(expected(name)[1])[0]:
        assert np.isfinite(g).all() and np.abs(g).max() > 0, jax.tree_util.keystr(path)


MESHES = [{"fsdp": 4, "tensor": 2}, {"expert": 2, "fsdp": 2, "tensor": 2}]


# Every run has latents over 8 devices in test_combinations, and both in reuse/.
@pytest.mark.slow
@pytest.mark.mesh
@pytest.mark.parametrize("name, mesh", list(itertools.product(MODELS, MESHES)))
def test_8_devices_give_the_loss_and_the_gradient_of_one(name, mesh):
    model, params = made(name, "scan")
    on = make_mesh(MeshConfig(**{"data": 1, **mesh}))
    placed = jax.device_put(params, parameter_shardings(model.specs, params, on))
    with jax.set_mesh(on):
        assert_same(jax.device_get(loss_and_gradient(model, placed)), expected(name))


@pytest.mark.mesh
@parametrize(
    "name, context",
    [("deepseek", "ring"), ("gpt-oss", "ring"), ("gpt-oss", "all_to_all")],
    by_default=[],
)
def test_rows_over_devices_give_the_loss_and_the_gradient_of_one(name, context):
    _, params = made(name)
    how = ExecutionConfig(
        layers="scan", attention="blockwise", context=context, compute_dtype="float32"
    )
    split, on = (
        build(MODELS[name], how, context=2),
        make_mesh(MeshConfig(data=1, fsdp=2, context=2, tensor=2)),
    )
    placed = jax.device_put(params, parameter_shardings(split.specs, params, on))
    with jax.set_mesh(on):
        rows = zigzag_order(MODELS[name], how, batch())
        arranged = jax.jit(jax.value_and_grad(lambda p, b: loss(split, p, b)))(placed, rows)
    assert_same(jax.device_get(arranged), expected(name))


@pytest.mark.mesh
@parametrize(
    "name, mesh",
    itertools.product(MODELS, MESHES),
    by_default=[],
)
def test_8_devices_decode_the_tokens_of_one(name, mesh):
    layers = "unroll" if "expert" in mesh else "scan"
    model, params = made(name, layers)
    prompts, greedy = (
        [np.random.default_rng(i).integers(0, 64, 3 + 2 * i).tolist() for i in range(8)],
        DecodeConfig(12, 0.0),
    )
    alone = Generator(model, params, layers=layers).generate(prompts, greedy)
    assert len({tuple(row) for row in alone}) > 4
    devices = make_mesh(MeshConfig(**{"data": 1, **mesh}))
    split = Generator(model, params, devices, layers=layers)
    assert split.generate(prompts, greedy) == alone


@pytest.mark.mesh
def test_decoding_has_the_outputs_of_dense_layers_first():
    """Kernels that are no dense layer's, of latents and of experts, stay as they are; so does
    everything in a scan and on a mesh.
    """
    model, params = made("deepseek")
    first, last = (Generator(model, params).params[name][0] for name in ("first_layers", "layers"))
    stored = jax.tree.map(lambda a: a[0], params["layers"])
    kinds = {
        name: type(part["kernel"]) for name, part in last["attention"].items() if "kernel" in part
    }
    assert type(first["mlp"]["up"]["kernel"]) is OutputFirst
    assert isinstance(last["mlp"]["up"]["kernel"], jax.Array)
    assert {name for name, kind in kinds.items() if kind is OutputFirst} == {
        "query_latent",
        "query",
        "latent",
        "rotated",
        "out",
    }
    attention = last["attention"]
    np.testing.assert_array_equal(
        attention["out"]["kernel"].array, stored["attention"]["out"]["kernel"].transpose(2, 0, 1)
    )
    np.testing.assert_array_equal(
        attention["query"]["kernel"].array,
        stored["attention"]["query"]["kernel"].transpose(1, 2, 0),
    )
    np.testing.assert_array_equal(attention["key"]["kernel"], stored["attention"]["key"]["kernel"])
    whole, params = made("deepseek", "scan")
    stacked = Generator(whole, params, layers="scan").params
    jax.tree.map(np.testing.assert_array_equal, stacked, params)
    split = Generator(model, params, make_mesh(MeshConfig(data=1, fsdp=8))).params
    assert isinstance(split["layers"][0]["attention"]["out"]["kernel"], jax.Array)


def test_decoding_has_queries_keys_and_values_as_one():
    """In that order; not those of attention over an encoder's output, which are of two inputs."""
    model, params = made("gpt-oss")
    stored = jax.tree.map(lambda a: a[1], params["layers"]["attention"])
    attention = Generator(model, params).params["layers"][1]["attention"]
    joined = attention["query"]["kernel"]
    rows = [stored[n]["kernel"].reshape(32, -1).T for n in ("query", "key", "value")]
    np.testing.assert_array_equal(joined.array, np.concatenate(rows))
    assert joined.array.shape == (4 * 8 + 2 * 2 * 8, 32)
    assert joined.outputs == ((4, 8), (2, 8), (2, 8))
    assert [attention[n]["kernel"] for n in ("key", "value")] == [JoinedPart(1), JoinedPart(2)]
    np.testing.assert_array_equal(attention["key"]["bias"], stored["key"]["bias"])
    model = build(
        override(
            ModelConfig(),
            {
                "vocab_size": 64,
                "num_layers": 1,
                "embed_dim": 32,
                "attention.num_heads": 4,
                "mlp.hidden_dim": 16,
                "max_length": 128,
                "encoder.num_layers": 1,
            },
        )
    )
    layer = Generator(model, random_parameters(model)).params["layers"][0]
    assert type(layer["attention"]["query"]["kernel"]) is Joined
    assert all(type(part["kernel"]) is OutputFirst for part in layer["cross_attention"].values())


def test_the_cache_of_latents_is_as_small_as_they_are():
    cache = made("deepseek")[0].init_cache(2, 10)
    shapes = [(layer.own.latents.shape, layer.own.rotated.shape) for layer in cache.layers]
    assert shapes == [((2, 10, 24), (2, 10, 4))] * 3


@parametrize("layers", [["unroll"], ["scan"]], by_default=[["scan"]])
def test_first_layers_that_are_as_the_others_are_just_the_first(layers):
    """Windows, rotations and dropout go by the place of a layer in the model, not in its stack; so
    do the layers of the cache.
    """
    fields = {
        "num_layers": 3,
        "attention.window_pattern": (3, 0),
        "positions.pattern": (True, False),
        "dropout": 0.3,
    }
    whole, params = made("gpt-oss", layers, **fields)
    parted, _ = made("gpt-oss", layers, **fields, first_layers="on")
    in_two = {
        **params,
        **{
            name: jax.tree.map(lambda a, part=part: a[part], params["layers"])
            for name, part in (("first_layers", slice(1)), ("layers", slice(1, None)))
        },
    }
    start = jax.tree.map(lambda a: a[:, :4], batch())

    def outputs(model, params):
        cache = model.init_cache(B, 8)
        trained = model.apply(params, batch(), dropout_key=jax.random.key(4))
        return trained.hidden, trained.load, model.apply(params, start, cache).cache

    assert_same(
        jax.jit(functools.partial(outputs, parted))(in_two),
        jax.jit(functools.partial(outputs, whole))(params),
    )


def test_first_layers_of_another_width_have_no_experts():
    model, params = made("deepseek")
    assert (
        params["first_layers"]["mlp"]["up"]["kernel"].shape == (1, 32, 40)
        and "router" not in params["first_layers"]["mlp"]
    )
    assert params["layers"]["mlp"]["up"]["kernel"].shape == (2, 8, 32, 16)
    assert jax.eval_shape(model.apply, params, batch()).load.shape == (2, 8)


def test_the_initial_scale_of_first_layers_goes_by_all_layers():
    config = override(
        MODELS["deepseek"],
        {"num_layers": 8, "first_layers.count": 2, "first_layers.mlp_dim": 512, "embed_dim": 64},
    )
    params = jax.jit(build(config).init)(jax.random.key(0))
    assert float(np.std(params["first_layers"]["mlp"]["down"]["kernel"])) == pytest.approx(
        0.02 / 4, rel=0.05
    )  # sqrt(2 * 8)
