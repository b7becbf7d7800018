"""Encoders: who depends on whom, packing, padding, heads, and training of masked tokens on one
device and eight.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pairwise import parametrize
from small_models import (
    DOCUMENTS,
    MESH,
    T,
    assert_same,
    forward,
    forward_on,
    loss_and_gradient,
    losses,
    made,
    random_parameters,
    reached,
    variants,
)

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
from llm_jax.models import build, class_logits, pooled, resolve_execution, zigzag_order
from llm_jax.sharding import make_mesh
from llm_jax.training.flops import train_flops
from llm_jax.types import Batch, ConfigError

BASE = override(
    ModelConfig(),
    {
        "vocab_size": 32,
        "num_layers": 2,
        "embed_dim": 16,
        "attention.num_heads": 4,
        "mlp.hidden_dim": 24,
        "max_length": 32,
        "init_std": 0.3,
        "causal": False,
        "norm": "layer",
        "embedding.norm": True,
        "head.transform": "on",
        "head.bias": True,
        "mlp.activation": "gelu",
    },
)
MODELS = variants(
    BASE,
    {
        "bert": {
            "norm.bias": True,
            "norm.position": "post",
            "norm.final": False,
            "positions": "learned",
            "positions.offset": 2,
            "mlp": "plain",
            "attention.qkv_bias": True,
            "attention.out_bias": True,
            "mlp.bias": True,
            "embedding.token_types": 2,
            "head.transform.bias": True,
            "pooler.layer": "tanh",
            "pooler.num_classes": 3,
        },
        "windows": {
            "num_layers": 3,
            "first_layers.count": 1,
            "first_layers.attention_norm": False,
            "attention.window_pattern": (0, 3),
            "positions.theta": 1e5,
            "positions.windowed_theta": 100.0,
        },
        "relative": {
            "norm": "rms",
            "positions": "relative",
            "positions.buckets": 8,
            "positions.max_distance": 6,
        },
    },
)


@pytest.mark.parametrize("name", MODELS)
def test_tokens_see_all_of_their_document_and_nothing_else(name, pack):
    batch = pack(DOCUMENTS, T)._replace(
        inputs=pack(DOCUMENTS, T).inputs._replace(
            ids=np.array([range(1, 13), range(12, 24)], np.int32)
        )
    )
    model, params = made(MODELS[name])
    config, segments = MODELS[name], batch.inputs.segment_ids
    seen = np.broadcast_to(np.eye(T, dtype=bool), (2, T, T))
    for layer in range(config.num_layers):
        width = config.window(layer) or T
        one = (segments[:, :, None] == segments[:, None, :]) & (
            np.abs(np.subtract.outer(np.arange(T), np.arange(T))) < width
        )
        seen = one.astype(int) @ seen.astype(int) > 0
    assert seen[0, 0, 4] and not seen[0, 0, 5]
    np.testing.assert_array_equal(reached(model, params, batch), seen)


@pytest.mark.parametrize("name", MODELS)
def test_packed_or_padded_on_either_side_a_document_is_as_alone(name, pack):
    _, params = made(MODELS[name])
    run = forward(MODELS[name])
    packed = np.asarray(run(params, pack(DOCUMENTS, T)))
    for row, whole in zip(DOCUMENTS, packed, strict=True):
        start = 0
        for document in row:
            n = len(document)
            right = pack([[document], [document]], T)
            left = jax.tree.map(lambda a, n=n: np.roll(a, T - n, axis=1), right)
            alone = np.asarray(run(params, right))[0, :n]
            others = [whole[start : start + n], np.asarray(run(params, left))[0, T - n :]]
            if document is DOCUMENTS[0][0]:
                others.append(np.asarray(run(params, pack([[document]], n)))[0])
            for out in others:
                np.testing.assert_allclose(out, alone, atol=1e-5)
            start += n


def masked(pack) -> Batch:
    """Some tokens of the packed rows are hidden, and are the targets in their own place."""
    batch = pack(DOCUMENTS, T)
    hidden = (np.arange(T)[None] % 3 == 1) & (batch.inputs.segment_ids != 0)
    return batch._replace(
        inputs=batch.inputs._replace(ids=np.where(hidden, 31, batch.inputs.ids).astype(np.int32)),
        targets=batch.inputs.ids,
        loss_mask=hidden,
    )


@parametrize("name", [[name] for name in MODELS], by_default=[["windows"]])
def test_scan_equals_unroll_and_every_gradient_is_finite(name, pack):
    _, params = made(MODELS[name])
    batch = masked(pack)
    expected = loss_and_gradient(made(MODELS[name])[0], params, batch)
    assert_same(loss_and_gradient(made(MODELS[name], "scan")[0], params, batch), expected)
    unread = {"pooler", "classes"}
    for path, g in jax.tree_util.tree_flatten_with_path(expected[1])[0]:
        assert np.isfinite(g).all() and (path[0].key in unread) == (not np.any(g)), path


@pytest.mark.mesh
@pytest.mark.slow
@pytest.mark.parametrize("name", ["bert", "relative"])
def test_eight_devices_give_what_one_gives(name, pack):
    model, params = made(MODELS[name])
    rows = jax.tree.map(lambda a: np.tile(a, (4, 1)), masked(pack))
    out = forward_on(make_mesh(MeshConfig(**MESH)), model, params, rows)
    np.testing.assert_allclose(out, forward(MODELS[name])(params, rows), atol=1e-5)


@pytest.mark.mesh
def test_a_ring_of_devices_takes_rows_in_order(pack):
    config = override(MODELS["windows"], {"num_layers": 2, "attention.window_pattern": (0, 5)})
    execution = ExecutionConfig(layers="unroll", compute_dtype="float32")
    plain, ring = build(config, execution), build(config, execution, context=4)
    params, batch = random_parameters(plain), masked(pack)
    with jax.set_mesh(make_mesh(MeshConfig(data=2, context=4))):
        jax.tree.map(np.testing.assert_array_equal, zigzag_order(config, execution, batch), batch)
        out = jax.jit(ring.apply)(params, batch).hidden
    np.testing.assert_allclose(out, jax.jit(plain.apply)(params, batch).hidden, atol=1e-5)


def run_of(mesh: dict) -> Config:
    return Config(
        model=dataclasses.replace(MODELS["bert"], num_layers=1),
        execution=ExecutionConfig(compute_dtype="float32"),
        mesh=MeshConfig(**mesh),
        data=override(DataConfig(), {"objective": "masked", "seq_length": T, "batch_size": 8}),
        train=TrainConfig(steps=30),
        optimizer=override(
            OptimizerConfig(), {"learning_rate": 0.02, "warmup_steps": 0, "schedule": "constant"}
        ),
    )


def with_types(batch: Batch) -> Batch:
    types = (batch.inputs.segment_ids % 2).astype(np.int32)
    return batch._replace(inputs=batch.inputs._replace(token_types=types))


@pytest.mark.slow
def test_masked_tokens_are_learnt(pack):
    batch = with_types(jax.tree.map(lambda a: np.tile(a, (4, 1)), masked(pack)))
    one = losses(run_of({"data": 1}), batch, 1, 12)
    assert one[-1] < 0.5 * one[0]


# Every run has the same of runs from files: training/test_train_objectives.
@pytest.mark.slow
@pytest.mark.mesh
def test_masked_tokens_are_learnt_by_the_same_step_on_one_device_and_eight(pack):
    batch = with_types(jax.tree.map(lambda a: np.tile(a, (4, 1)), masked(pack)))
    one = losses(run_of({"data": 1}), batch, 1, 4)
    np.testing.assert_allclose(losses(run_of(MESH), batch, 8, 4), one, rtol=1e-4)


def test_vectors_and_classes_of_rows_come_of_the_first_token(pack):
    params = jax.tree.map(np.asarray, made(MODELS["bert"])[1])
    hidden = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 16)), jnp.float32)
    mask = jnp.array([[True] * 5, [False, False, True, True, True]])
    p, first = params["pooler"], np.stack([hidden[0, 0], hidden[1, 2]])
    vectors = np.tanh(first @ p["kernel"] + p["bias"])
    np.testing.assert_allclose(pooled(MODELS["bert"], params, hidden, mask), vectors, atol=1e-5)
    wanted = vectors @ params["classes"]["kernel"] + params["classes"]["bias"]
    np.testing.assert_allclose(
        class_logits(MODELS["bert"], params, hidden, mask), wanted, atol=1e-5
    )
    with pytest.raises(
        ConfigError,
        match=r"model\.pooler is none: .* use ops\.mean_pool, or set it to on",
    ):
        pooled(BASE, params, hidden, mask)
    with pytest.raises(ConfigError, match=r"model\.pooler\.num_classes is 0"):
        class_logits(BASE, params, hidden, mask)


def test_vectors_of_rows_may_come_of_the_mean_and_of_the_layer_of_the_head():
    config = override(
        MODELS["windows"],
        {"pooler.layer": "transform", "pooler.reads": "mean", "pooler.num_classes": 3},
    )
    params = jax.tree.map(np.asarray, random_parameters(build(config)))
    assert "pooler" not in params
    hidden = np.random.default_rng(0).normal(size=(2, 5, 16)).astype(np.float32)
    mask = np.array([[True] * 5, [False, False, True, True, False]])
    p, mean = params["head_transform"], np.stack([hidden[0].mean(0), hidden[1, 2:4].mean(0)])
    y = np.asarray(jax.nn.gelu(mean @ p["kernel"], approximate=False))
    vectors = (
        (y - y.mean(-1, keepdims=True))
        / np.sqrt(y.var(-1, keepdims=True) + config.norm.eps)
        * p["norm"]["scale"]
    )
    np.testing.assert_allclose(pooled(config, params, hidden, mask), vectors, atol=1e-5)
    wanted = vectors @ params["classes"]["kernel"] + params["classes"]["bias"]
    np.testing.assert_allclose(class_logits(config, params, hidden, mask), wanted, atol=1e-5)
    bert, p = (
        override(MODELS["bert"], {"pooler.reads": "mean"}),
        jax.tree.map(np.asarray, made(MODELS["bert"])[1]),
    )
    vectors = np.tanh(mean @ p["pooler"]["kernel"] + p["pooler"]["bias"])
    np.testing.assert_allclose(pooled(bert, p, hidden, mask), vectors, atol=1e-5)


def test_without_a_layer_the_classes_are_of_what_is_read():
    hidden = np.random.default_rng(0).normal(size=(2, 5, 16)).astype(np.float32)
    mask = np.array([[True] * 5, [False, False, True, True, False]])
    read = {"last": np.stack([hidden[0, 4], hidden[1, 3]]), "each": hidden}
    for reads, vectors in read.items():
        config = override(MODELS["bert"], {"pooler.layer": "identity", "pooler.reads": reads})
        params = jax.tree.map(np.asarray, random_parameters(build(config)))
        assert "pooler" not in params
        np.testing.assert_array_equal(pooled(config, params, hidden, mask), vectors)
        wanted = vectors @ params["classes"]["kernel"] + params["classes"]["bias"]
        np.testing.assert_allclose(class_logits(config, params, hidden, mask), wanted, atol=1e-5)


def test_what_an_encoder_cannot_do_is_refused_by_name(pack):
    model, params = made(MODELS["windows"])
    with pytest.raises(
        ConfigError,
        match=r"model\.causal is False, and decoding with a cache writes tokens one by one",
    ):
        model.init_cache(1, 8)
    batch = pack(DOCUMENTS, T)
    with pytest.raises(
        ConfigError,
        match=r"batch\.inputs\.token_types is given, and model\.embedding\.token_types is 0",
    ):
        model.apply(
            params,
            batch._replace(inputs=batch.inputs._replace(token_types=batch.inputs.segment_ids)),
        )
    with pytest.raises(ConfigError, match=r"batch\.encoder is given, and model\.encoder is none"):
        model.apply(
            params,
            batch._replace(encoder=batch.inputs),
        )
    with pytest.raises(
        ConfigError,
        match=r"model\.positions is 'relative', and mesh\.context 2 does not split a bias",
    ):
        resolve_execution(ExecutionConfig(), MODELS["relative"], "cpu", context=2)


def test_flops_of_an_encoder_are_those_of_all_pairs():
    plain = override(MODELS["relative"], {"head.transform": "none"})
    assert (
        train_flops(plain, 16).causal
        == train_flops(plain, 16).full
        == train_flops(dataclasses.replace(plain, causal=True), 16).full
    )
    assert train_flops(MODELS["relative"], 16).full - train_flops(plain, 16).full == 6 * 16 * 16
