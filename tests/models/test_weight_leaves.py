"""Models, training and decoding take leaf types in the place of kernels, unchanged: the results are
those of the arrays that the leaves stand for.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pairwise import parametrize
from parameters import random_parameters
from small_models import MESH

from llm_jax.config import DecodeConfig, ExecutionConfig, MeshConfig, ModelConfig, override
from llm_jax.decode import Generator
from llm_jax.models import build
from llm_jax.ops.weights import (
    LowRank,
    add_low_rank,
    expand_specs,
    is_weight_leaf,
    quantize,
    to_array,
)
from llm_jax.sharding import device_put_batch, make_mesh, parameter_shardings
from llm_jax.types import Batch, Tokens

# Latent attention, experts and shared experts, a head of its own: every product that there is.
LATENT = override(
    ModelConfig(),
    {
        "vocab_size": 32,
        "num_layers": 2,
        "embed_dim": 16,
        "attention.num_heads": 4,
        "attention.head_dim": 6,
        "attention.value_dim": 4,
        "attention": "latent",
        "attention.kv_latent": 8,
        "attention.q_latent": 12,
        "attention.rope_dim": 2,
        "mlp.hidden_dim": 8,
        "max_length": 64,
        "experts.count": 4,
        "experts.per_token": 2,
        "experts.shared": 1,
        "embedding.tied": False,
    },
)
DENSE = override(
    ModelConfig(),
    {
        "vocab_size": 32,
        "num_layers": 2,
        "embed_dim": 16,
        "attention.num_heads": 4,
        "attention.num_kv_heads": 2,
        "mlp.hidden_dim": 24,
        "max_length": 64,
        "attention.qkv_bias": True,
    },
)
MODELS = {"dense": DENSE, "latent": LATENT}
MATRICES = ("matrix", "head")


def leaves_of(model, params, kind):
    """``params`` with a leaf of this kind for every matrix; a low-rank part is off 0."""

    @functools.partial(jax.jit, static_argnums=2)
    def low_rank(key, weight, spec):
        leaf = add_low_rank(key, weight, weight.shape, spec.contract, rank=2)
        b = 0.2 * jax.random.normal(jax.random.fold_in(key, 1), leaf.b.shape)
        return leaf.a, b

    def one(weight, spec, i):
        if spec.role not in MATRICES:
            return weight
        if kind == "int8":
            return quantize(weight, spec.contract)
        return LowRank(weight, *low_rank(jax.random.key(i), weight, spec), 0.5)

    flat, structure = jax.tree.flatten(params)
    specs = jax.tree.leaves(model.specs)
    return structure.unflatten([one(w, s, i) for i, (w, s) in enumerate(zip(flat, specs))])


def arrays_of(leaves):
    return jax.tree.map(lambda w: to_array(w, jnp.float32), leaves, is_leaf=is_weight_leaf)


def rows(batch_size=8):
    ids = jnp.asarray(np.random.default_rng(0).integers(0, 32, (batch_size, 8)), jnp.int32)
    ones = jnp.ones_like(ids)
    positions = jnp.broadcast_to(jnp.arange(8, dtype=jnp.int32)[None], ids.shape)
    return Batch(
        inputs=Tokens(ids, ones, positions),
        targets=jnp.roll(ids, -1, 1),
        loss_mask=ones.astype(bool),
    )


def loss(model, params, batch):
    logits = jax.nn.log_softmax(model.logits(params, model.apply(params, batch).hidden))
    return -jnp.mean(jnp.take_along_axis(logits, batch.targets[..., None], -1))


def model_of(config, layers):
    return build(config, ExecutionConfig(layers=layers, attention="xla", compute_dtype="float32"))


@parametrize(
    "name, kind, layers",
    itertools.product(MODELS, ("int8", "low rank"), ("scan", "unroll")),
    by_default=[("dense", "int8", "scan"), ("latent", "low rank", "unroll")],
)
def test_a_model_takes_leaves_in_the_place_of_kernels(name, kind, layers):
    model = model_of(MODELS[name], layers)
    leaves = leaves_of(model, random_parameters(model), kind)
    batch = rows(2)
    run = jax.jit(lambda params: model.logits(params, model.apply(params, batch).hidden))
    np.testing.assert_allclose(run(leaves), run(arrays_of(leaves)), rtol=1e-4, atol=1e-4)


@pytest.mark.mesh
@parametrize("layers", [["scan"], ["unroll"]], by_default=[["scan"]])
def test_low_rank_parts_learn_on_8_devices_as_on_one(layers):
    """Layers scanned over or not: gradients are those of the kernel, by the chain rule."""
    model = model_of(DENSE, layers)
    leaves = leaves_of(model, random_parameters(model), "low rank")
    batch = rows()
    slopes = jax.jit(jax.grad(lambda params: loss(model, params, batch)))(leaves)
    whole = jax.jit(jax.grad(lambda params: loss(model, params, batch)))(arrays_of(leaves))
    up = leaves["layers"]["mlp"]["up"]["kernel"]
    d = whole["layers"]["mlp"]["up"]["kernel"]
    got = slopes["layers"]["mlp"]["up"]["kernel"]
    np.testing.assert_allclose(
        got.a, 0.5 * jnp.einsum("lif,lrf->lir", d, up.b), rtol=1e-3, atol=1e-5
    )
    np.testing.assert_allclose(
        got.b, 0.5 * jnp.einsum("lir,lif->lrf", up.a, d), rtol=1e-3, atol=1e-5
    )
    mesh = make_mesh(MeshConfig(**MESH))
    placed = jax.device_put(leaves, parameter_shardings(model.specs, leaves, mesh))
    with jax.set_mesh(mesh):
        split = jax.jit(jax.grad(lambda params, batch: loss(model, params, batch)))(
            placed, device_put_batch(batch, mesh)
        )
    for one, other in zip(jax.tree.leaves(split), jax.tree.leaves(slopes)):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)
    a = placed["layers"]["mlp"]["up"]["kernel"].a
    assert a.sharding.shard_shape(a.shape) == (2, 8, 2)


@parametrize("kind", [["int8"], ["low rank"]], by_default=[["low rank"]])
def test_decoding_takes_leaves(kind):
    model = model_of(DENSE, "unroll")
    leaves = leaves_of(model, random_parameters(model), kind)
    config = DecodeConfig(max_new_tokens=6, temperature=0.0)
    prompts = [[1, 2, 3], [4, 5, 6, 7]]
    expected = Generator(model, arrays_of(leaves)).generate(prompts, config)
    assert Generator(model, leaves).generate(prompts, config) == expected


def test_specs_have_the_structure_of_parameters():
    for config in (DENSE, LATENT):
        model = model_of(config, "scan")
        shapes = jax.eval_shape(model.init, jax.random.key(0))
        specs = expand_specs(model.specs, shapes)
        assert jax.tree.structure(specs) == jax.tree.structure(shapes)
        for spec, leaf in zip(jax.tree.leaves(specs), jax.tree.leaves(shapes)):
            assert len(spec.axes) == leaf.ndim
            assert all(i < leaf.ndim for i in spec.contract)
            assert bool(spec.contract) == (spec.role in (*MATRICES, "router", "embedding"))
