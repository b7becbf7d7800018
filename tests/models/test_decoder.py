"""The decoder over a broad set of architectures: who depends on whom, packing, cached decoding,
ways of running.
"""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pairwise import cover, parametrize
from parameters import random_parameters
from small_models import (
    DOCUMENTS,
    T,
    assert_same,
    forward,
    loss_and_gradient,
    made,
    reached,
    variants,
)

from llm_jax.config import ExecutionConfig, ModelConfig, override
from llm_jax.decode.programs import extend
from llm_jax.models import build, rows_of
from llm_jax.types import Batch, ConfigError, Tokens

BASE = override(
    ModelConfig(),
    {
        "vocab_size": 32,
        "num_layers": 2,
        "embed_dim": 16,
        "attention.num_heads": 4,
        "attention.num_kv_heads": 2,
        "mlp.hidden_dim": 24,
        "max_length": 32,
        "init_std": 0.3,
    },
)
# What differs from llama in one mechanism of a layer has one layer.
MODELS = variants(
    BASE,
    {
        "llama": {},
        "gpt2": {
            "norm": "layer",
            "norm.bias": True,
            "positions": "learned",
            "mlp": "plain",
            "mlp.activation": "gelu_tanh",
            "attention.qkv_bias": True,
            "attention.out_bias": True,
            "mlp.bias": True,
            "attention.num_kv_heads": 4,
        },
        "gemma2": {
            "norm.position": "sandwich",
            "norm.unit_offset": True,
            "attention.softcap": 5.0,
            "head.softcap": 3.0,
            "attention.window_pattern": (3, 0),
            "mlp.activation": "gelu_tanh",
            "embedding.scale_by_width": True,
            "attention.head_dim": 8,
            "attention.scale": 0.5,
        },
        "qwen3": {
            "attention.qk_norm": "head",
            "embedding.tied": False,
            "positions.theta": 1e6,
            "num_layers": 1,
        },
        "neox": {
            "parallel_residual": True,
            "norm": "layer",
            "norm.bias": True,
            "mlp": "plain",
            "mlp.activation": "gelu",
            "attention.qkv_bias": True,
            "num_layers": 1,
        },
        "original": {
            "norm.position": "post",
            "norm": "layer",
            "positions": "sinusoidal",
            "mlp": "plain",
            "mlp.activation": "relu",
            "norm.final": False,
        },
        "parallel post, multi-query": {
            "parallel_residual": True,
            "norm.position": "post",
            "attention.num_kv_heads": 1,
        },
        "no positions": {"positions": "none", "num_layers": 1},
        "windows, three layers": {"attention.window_pattern": (2, 4), "num_layers": 3},
        "linear rope": {
            "positions.scaling": "linear",
            "positions.scaling.factor": 4.0,
            "num_layers": 1,
        },
        # So narrow that one token takes the latents as they are, and four make keys and values of
        # them.
        "latent": {
            "attention.head_dim": 4,
            "attention.value_dim": 2,
            "attention": "latent",
            "attention.kv_latent": 16,
            "attention.q_latent": 10,
            "attention.rope_dim": 2,
            "num_layers": 3,
            "first_layers.count": 1,
            "first_layers.mlp_dim": 20,
            "attention.window_pattern": (0, 3),
        },
        "values of another width": {"attention.value_dim": 6, "num_layers": 1},
        "sinks": {
            "attention.sinks": True,
            "attention.window_pattern": (3, 0),
            "mlp.activation": "quick_gelu",
            "mlp.clamp": 0.5,
            "mlp.up_offset": 1.0,
            "attention.qkv_bias": True,
            "mlp.bias": True,
        },
        "yarn": {
            "positions.scaling": "yarn",
            "positions.scaling.factor": 4.0,
            "positions.scaling.original_length": 8,
            "attention.window_pattern": (3,),
            "num_layers": 1,
        },
    },
)

# The others differ from these in what a mask does not see.
DISTINCT = ("llama", "gemma2", "original", "parallel post, multi-query", "latent", "sinks")


def sight(
    config: ModelConfig, segments: np.ndarray, groups: np.ndarray | None = None
) -> np.ndarray:
    """[B, T, T]: which inputs reach which output through all layers, by multiplying the layers'
    masks out.
    """
    B, length = segments.shape
    reach = np.broadcast_to(np.eye(length, dtype=bool), (B, length, length))
    for layer in range(config.num_layers):
        width = config.attention.window_pattern[layer % len(config.attention.window_pattern)]
        one = np.zeros((B, length, length), bool)
        for b, t, s in np.ndindex(one.shape):
            mutual = groups is not None and groups[b, t] and groups[b, t] == groups[b, s]
            ordered = s <= t or mutual
            one[b, t, s] = (
                ordered and segments[b, t] == segments[b, s] and (not width or abs(t - s) < width)
            )
        reach = (one.astype(int) @ reach.astype(int)) > 0
    return reach


@parametrize("name", [[name] for name in MODELS], by_default=[[name] for name in DISTINCT])
def test_outputs_depend_on_exactly_the_inputs_they_may_see(name, pack):
    """Causality, packing and windows in one picture: exact zeros outside, something everywhere
    inside.
    """
    batch = pack(DOCUMENTS, T)._replace(
        inputs=pack(DOCUMENTS, T).inputs._replace(
            ids=np.array([range(1, 13), range(12, 24)], np.int32)
        )
    )
    model, params = made(MODELS[name])
    np.testing.assert_array_equal(
        reached(model, params, batch), sight(MODELS[name], batch.inputs.segment_ids)
    )


LEAKS = list(
    itertools.product(
        ["xla", "dot_product"],
        ["causal", "window", "groups"],
        [(4, "float32"), (2, "bfloat16"), (1, "float32")],
    )
)


@parametrize(
    "backend, kind, heads",
    LEAKS,
    by_default=cover(LEAKS, enumerate, [(0, 1), (0, 2)]),
)
def test_no_leak_between_packed_documents_for_any_backend(backend, kind, heads, pack):
    kv_heads, dtype = heads
    config = override(
        BASE,
        {
            "num_layers": 1,
            "attention.num_kv_heads": kv_heads,
            "attention.window_pattern": (3 if kind == "window" else 0,),
        },
    )
    model = build(config, ExecutionConfig(layers="unroll", attention=backend, compute_dtype=dtype))
    params = random_parameters(model)
    groups = np.zeros((2, T), np.int32)
    groups[:, :4] = 1
    groups[:, 6:9] = 2
    groups = groups if kind == "groups" else None
    batch = pack(DOCUMENTS, T)._replace(
        inputs=pack(DOCUMENTS, T).inputs._replace(
            ids=np.array([range(1, 13), range(12, 24)], np.int32)
        )
    )
    batch = batch._replace(inputs=batch.inputs._replace(mutual_ids=groups))
    np.testing.assert_array_equal(
        reached(model, params, batch), sight(config, batch.inputs.segment_ids, groups)
    )


@parametrize("name", [[name] for name in MODELS], by_default=[[name] for name in DISTINCT])
def test_packed_documents_equal_documents_alone(name, pack):
    _, params = made(MODELS[name])
    run = forward(MODELS[name])
    packed = [np.asarray(run(params, pack([row] * 3, T)))[0] for row in DOCUMENTS]
    for row, whole in zip(DOCUMENTS, packed):
        start = 0
        for document in row:
            alone = np.asarray(run(params, pack([[document]] * 3, T)))[0]
            np.testing.assert_allclose(
                whole[start : start + len(document)], alone[: len(document)], atol=1e-5
            )
            start += len(document)


# All but those whose mechanisms others have too.
CACHED = [
    "gpt2",
    "gemma2",
    "qwen3",
    "original",
    "parallel post, multi-query",
    "latent",
    "values of another width",
    "sinks",
    "yarn",
]


@parametrize("name", [[name] for name in MODELS], by_default=[[name] for name in CACHED])
def test_cached_decoding_equals_the_full_forward_pass(name, pack):
    """Ragged prompts, padded on the right, prefilled in two chunks; then one token at a time."""
    model, params = made(MODELS[name])
    rng = np.random.default_rng(0)
    lengths, total = np.array([7, 3, 5]), np.array([12, 9, 10])
    rows = [rng.integers(1, 32, n).tolist() for n in total]
    expected = np.asarray(forward(MODELS[name])(params, pack([[r] for r in rows], T)))

    @jax.jit
    def step(cache, tokens, real):
        positions = cache.length[:, None] + jnp.arange(tokens.shape[1])[None]
        batch = Batch(
            inputs=Tokens(tokens, real.astype(jnp.int32), positions), targets=tokens, loss_mask=real
        )
        out = model.apply(params, batch, cache)
        return jax.nn.log_softmax(model.logits(params, out.hidden)), out.cache

    def feed(cache, width, until):
        done = np.asarray(cache.length)
        places = done[:, None] + np.arange(width)[None]
        real = places < until[:, None]
        tokens = np.array(
            [[rows[b][p] if p < until[b] else 31 for p in places[b]] for b in range(3)]
        )
        out, cache = step(cache, tokens, real)
        for b in range(3):
            for i, p in enumerate(places[b]):
                if real[b, i]:
                    np.testing.assert_allclose(np.asarray(out)[b, i], expected[b, p], atol=1e-5)
                    seen.add((b, p))
        np.testing.assert_array_equal(cache.length, done + real.sum(1))
        return cache

    seen: set = set()
    cache = model.init_cache(3, 16)
    for _ in range(2):
        cache = feed(cache, 4, lengths)
    np.testing.assert_array_equal(cache.length, lengths)
    while len(seen) < total.sum():
        cache = feed(cache, 1, total)
    assert seen == {(b, p) for b in range(3) for p in range(total[b])}


def test_cached_decoding_in_a_scan():
    """Windows of period 2 over three layers; two calls of three tokens."""
    tokens, steps = np.array([[3, 4, 5], [6, 7, 8]]), {}
    for layers in ("unroll", "scan"):
        model, params = made(MODELS["windows, three layers"], layers)
        run = jax.jit(functools.partial(extend, model))
        cache = model.init_cache(2, 8)
        for _ in range(2):
            hidden, cache = run(params, tokens, np.array([3, 3]), cache)
        steps[layers] = [hidden, *jax.tree.leaves(cache)]
    for a, b in zip(steps["unroll"], steps["scan"], strict=True):
        np.testing.assert_allclose(b, a, atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_groups_of_a_prompt_are_read_into_a_cache(name):
    """In the call that begins its rows; the steps after it see what they left."""
    model, params = made(MODELS[name])
    ids = np.array([[3, 1, 4, 1, 5, 9, 2], [6, 5, 3, 5, 8, 0, 0]])
    rows = jax.tree.map(np.asarray, rows_of(ids, np.array([7, 5])))
    groups = np.array([[1, 1, 1, 0, 2, 2, 0], [0, 4, 4, 4, 4, 0, 0]])

    @jax.jit
    def both(groups):
        grouped = rows._replace(inputs=rows.inputs._replace(mutual_ids=groups))
        begun = model.apply(params, grouped, model.init_cache(2, 16), begin=True)
        return model.apply(params, grouped).hidden, begun.hidden

    full, begun = both(groups)
    for row, length in enumerate((7, 5)):
        np.testing.assert_allclose(begun[row, :length], full[row, :length], atol=1e-5)
    _, plain = both(np.zeros_like(groups))
    assert np.abs(np.asarray(plain) - np.asarray(begun))[0, 0].max() > 1e-3


def test_a_cache_longer_than_the_model_or_groups_in_rows_that_go_on_are_refused(pack):
    model, params = made(MODELS["llama"])
    with pytest.raises(
        ConfigError, match=r"cache of 33 tokens is longer than model\.max_length 32"
    ):
        model.init_cache(1, 33)
    batch = pack([[[1, 2, 3]]], 4)
    batch = batch._replace(inputs=batch.inputs._replace(mutual_ids=batch.loss_mask))
    with pytest.raises(ConfigError, match="mutual_ids is given for rows that go on in a cache"):
        model.apply(params, batch, model.init_cache(1, 8))


@pytest.fixture(scope="module")
def unrolled(pack):
    """Three layers with two kinds of windows and dropout, written out: what every other strategy
    must equal.
    """
    config = dataclasses.replace(MODELS["windows, three layers"], dropout=0.3)
    params, batch, key = (
        made(MODELS["windows, three layers"])[1],
        pack(DOCUMENTS, T),
        jax.random.key(3),
    )
    return (
        config,
        params,
        batch,
        key,
        loss_and_gradient(build(config, ExecutionConfig(layers="unroll")), params, batch, key),
    )


# Windows of period 2 over three layers: one repeat is scanned, the last layer is run after it.
STRATEGIES = [
    ("scan", "none"),
    ("scan", "full"),
    ("unroll", "full"),
    ("scan", "dots"),
    ("unroll", "dots"),
    ("scan", "names:mlp_hidden"),
    ("unroll", "names:query,key,value,attention_out,mlp_hidden,mlp_out"),
    ("scan", "offload:attention_out,mlp_hidden"),
    ("unroll", "offload:mlp_out"),
]


# At night every policy, scanned or not; a scan without one: test_encoders.
@parametrize("layers, remat", STRATEGIES, by_default=[STRATEGIES[n] for n in (3, 6)])
def test_every_way_of_running_gives_the_same_loss_and_gradient(layers, remat, unrolled):
    config, params, batch, key, expected = unrolled
    model = build(config, ExecutionConfig(layers=layers, remat=remat))
    assert_same(loss_and_gradient(model, params, batch, key), expected)


@functools.cache
def saved_values(policy: str, layers: str) -> int:
    """Elements kept from the forward pass for the backward pass."""
    model = build(BASE, ExecutionConfig(layers=layers, remat=policy))
    params = jax.eval_shape(model.init, jax.random.key(0))
    rows = jax.ShapeDtypeStruct((2, T), jnp.int32)

    def residuals(params, rows):
        batch = Batch(inputs=Tokens(rows, rows, rows), targets=rows, loss_mask=rows > 0)
        return jax.vjp(lambda p: model.apply(p, batch).hidden, params)[1]

    return sum(a.size for a in jax.tree.leaves(jax.eval_shape(residuals, params, rows)))


@pytest.mark.parametrize("layers", ["scan", "unroll"])
def test_remat_policies_keep_less(layers):
    kept = {
        p: saved_values(p, layers)
        for p in ("none", "names:mlp_hidden", "names:mlp_hidden,query", "full")
    }
    assert kept["names:mlp_hidden,query"] < kept["none"]
    one_hidden, one_query = (
        2 * T * width * BASE.num_layers for width in (BASE.mlp.hidden_dim, BASE.embed_dim)
    )
    assert kept["names:mlp_hidden"] - kept["full"] == one_hidden
    assert kept["names:mlp_hidden,query"] - kept["names:mlp_hidden"] == one_query


@pytest.mark.parametrize("layers", ["scan", "unroll"])
def test_remat_dots_keeps_the_matrix_products(layers):
    """Query, key, value, attention's output and its projection, gate and up; the backward pass has
    no use for the product of down.
    """
    widths = (
        BASE.embed_dim * 3
        + 2 * BASE.attention.num_kv_heads * BASE.head_dim
        + 2 * BASE.mlp.hidden_dim
    )
    assert (
        saved_values("dots", layers) - saved_values("full", layers)
        == 2 * T * BASE.num_layers * widths
    )


def test_dropout_is_a_function_of_its_key(pack):
    model = build(dataclasses.replace(BASE, dropout=0.5), ExecutionConfig())
    params = made(MODELS["llama"])[1]
    run = jax.jit(lambda key: model.apply(params, pack(DOCUMENTS, T), dropout_key=key).hidden)
    first, again, other = (np.asarray(run(jax.random.key(k))) for k in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any(-1).all()
    # No key: the program of a model without dropout.
    plain = build(BASE, ExecutionConfig())
    with_none, without = (
        str(jax.make_jaxpr(m.apply)(params, pack(DOCUMENTS, T))) for m in (model, plain)
    )
    assert with_none == without


def test_dropout_differs_between_layers_and_places():
    """With embeddings of 1 and no blocks' output, what is left are the masks of the embedding."""
    model = build(override(BASE, {"dropout": 0.5, "norm.final": False}), ExecutionConfig())
    params = jax.tree.map(jnp.zeros_like, made(MODELS["llama"])[1])
    params["embed"]["embedding"] += 1.0
    tokens = np.ones((4, T), np.int32)
    batch = Batch(inputs=Tokens(tokens, tokens, tokens), targets=tokens, loss_mask=tokens > 0)
    run = jax.jit(lambda key: model.apply(params, batch, dropout_key=key).hidden)
    hidden = np.asarray(run(jax.random.key(0)))
    assert set(np.unique(hidden)) == {0.0, 2.0}
    patterns = {row.tobytes() for row in hidden.reshape(-1, hidden.shape[-1])}
    assert len(patterns) > 40


def test_bfloat16_compute_keeps_float32_parameters_and_logits(pack):
    model, params = made(MODELS["llama"], "unroll", "xla", "bfloat16")
    batch = pack(DOCUMENTS, T)
    assert {a.dtype for a in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    hidden = jax.jit(model.apply)(params, batch).hidden
    assert hidden.dtype == jnp.bfloat16
    assert jax.eval_shape(model.logits, params, hidden).dtype == jnp.float32
    exact = jax.jit(made(MODELS["llama"])[0].apply)(params, batch).hidden
    error = np.linalg.norm(np.asarray(hidden, np.float32) - exact) / np.linalg.norm(exact)
    assert 1e-5 < error < 0.05
    assert model.init_cache(1, 4).dtype == jnp.bfloat16
    _, grads = jax.eval_shape(lambda p: loss_and_gradient(model, p, batch), params)
    assert {a.dtype for a in jax.tree.leaves(grads)} == {jnp.dtype("float32")}
