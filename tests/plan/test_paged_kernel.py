"""Attention over pages by TPU's kernel: what it is given, and compiled for slices that are not
there.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas.ops.tpu import ragged_paged_attention as rpa

from llm_jax import models
from llm_jax.config import CacheConfig, Config, ExecutionConfig, override
from llm_jax.models.paged_attention import paged_attention
from llm_jax.ops.attention import Options
from llm_jax.ops.cache import Chunk, Pages, Slots, kernel_sizes, kernel_takes, paged_cache
from llm_jax.ops.masks import Mask
from llm_jax.plan.decode import plan_decode
from llm_jax.plan.topology import devices, parse_topology, stand_ins
from llm_jax.sharding import make_mesh

# The heads of SmolLM2, which are padded both ways.
N, K, H = 9, 3, 64
SIZE, ENTRIES = 16, 4


@pytest.mark.parametrize(
    "heads, width, ways, takes, sizes",
    [
        (8, 128, 1, True, (8, 128)),
        (3, 64, 1, True, (4, 128)),
        (8, 128, 8, True, (8, 128)),
        (6, 80, 2, True, (8, 128)),
        (2, 256, 1, False, (2, 256)),
        (2, 256, 2, True, (2, 256)),
        (1, 192, 1, True, (1, 256)),
        (1, 320, 1, False, (1, 384)),
        (2, 128, 4, False, (2, 128)),
    ],
)
def test_heads_that_the_kernel_takes(heads, width, ways, takes, sizes):
    assert kernel_takes(heads, width, ways) is takes
    assert kernel_sizes(heads, width) == sizes


def filled(dtype, kernel):
    """Pages of three rows with random tokens, and a call that adds some to each."""
    rng = np.random.default_rng(0)
    slots = Slots(3, SIZE * ENTRIES, pages=Pages(SIZE, 3 * ENTRIES))
    padded = kernel_sizes(K, H) if kernel else None
    cache = paged_cache(slots, K, (H, H), dtype, padded=padded)
    table = jnp.asarray(rng.permutation(3 * ENTRIES).reshape(3, ENTRIES), jnp.int32)
    before = jnp.array([37, 5, 20])
    k, v = (jnp.asarray(rng.normal(size=(3, 40, K, H)), dtype) for _ in range(2))
    cache = cache.append(Chunk(jnp.zeros(3, jnp.int32), before, 40, table=table), k, v)
    return cache, table, before, (k, v), rng


def reference(*args, num_kv_pages_per_block, num_queries_per_block, **settings):
    """The kernel's own reference, in place of the kernel, which nothing but a TPU can run."""
    assert 0 < num_kv_pages_per_block <= ENTRIES and num_queries_per_block > 0
    return rpa.ref_ragged_paged_attention(*args, **settings)


@pytest.mark.parametrize("width, counts", [(1, [1, 1, 1]), (4, [4, 0, 2])])
@pytest.mark.parametrize("window, softcap", [(0, 0.0), (9, 3.0)])
def test_the_kernel_is_given_what_gathered_rows_are(monkeypatch, width, counts, window, softcap):
    monkeypatch.setattr(rpa, "ragged_paged_attention", reference)
    by_kernel, table, before, (k, v), rng = filled(jnp.float32, True)
    by_gather, *_ = filled(jnp.float32, False)
    chunk = Chunk(before, jnp.asarray(counts), width, table=table)
    q = jnp.asarray(rng.normal(size=(3, width, N, H)), jnp.float32)
    new = (k[:, :width], v[:, :width])
    mask = Mask(window=window, q_index=before[:, None] + jnp.arange(width)[None, :])
    _, wanted = by_gather.attend(chunk, q, *new, mask, Options(0.125, softcap))
    written = by_kernel.append(chunk, *new)
    got = paged_attention(q, written, chunk, scale=0.125, softcap=softcap, window=window)
    for row, count in enumerate(counts):
        np.testing.assert_allclose(got[row, :count], wanted[row, :count], atol=1e-5)


@pytest.mark.compiler
@pytest.mark.parametrize("slice_name", ["v5e:2x2", "v5p:2x2x1", "v6e:2x2"])
def test_the_kernel_compiles(slice_name):
    """Padded heads, a window and a soft cap; for a step and for a chunk."""
    config = override(Config(), {"mesh.data": 2, "mesh.fsdp": 2}).mesh
    mesh = make_mesh(config, devices(parse_topology(slice_name)))
    slots = Slots(4, SIZE * ENTRIES, pages=Pages(SIZE, 4 * ENTRIES, 4))
    for width in (1, 5):

        def run(cache, q, start, table, width=width):
            chunk = Chunk(start, jnp.full_like(start, width), width, table=table)
            attend = partial(paged_attention, scale=0.1, softcap=5.0, window=32)
            return attend(q, cache, chunk)

        cache = jax.eval_shape(
            lambda: paged_cache(slots, K, (H, H), jnp.bfloat16, padded=kernel_sizes(K, H))
        )
        shapes = (
            cache,
            jax.ShapeDtypeStruct((4, width, N, H), jnp.bfloat16),
            jax.ShapeDtypeStruct((4,), jnp.int32),
            jax.ShapeDtypeStruct((4, ENTRIES), jnp.int32),
        )
        with jax.set_mesh(mesh):
            text = jax.jit(run).lower(*shapes).compile().as_text()
        assert "ragged_paged_attention_kernel" in text


def test_what_the_kernel_does_not_honour_is_gathered():
    """On a mesh of TPUs that need not exist."""

    mesh = make_mesh(
        override(Config(), {"mesh.fsdp": 1}).mesh, stand_ins(parse_topology("v5e:1x1"))
    )
    base = {"vocab_size": 32, "num_layers": 1, "embed_dim": 64, "attention.num_heads": 4}

    def kernel(kind=CacheConfig("paged"), **more):  # noqa: B008 (frozen)
        config = override(Config().model, {**base, **more})
        model = models.build(config, ExecutionConfig(attention="xla"))
        with jax.set_mesh(mesh):
            return jax.eval_shape(lambda: model.init_cache(1, 64, kind=kind)).layers[0].own.kernel

    assert kernel()
    assert kernel(**{"attention.window_pattern": (8,), "attention.softcap": 2.0})
    assert not kernel(**{"attention.sinks": True})
    assert not kernel(**{"attention.value_dim": 8})
    assert not kernel(**{"positions": "relative"})
    assert not kernel(**{"attention.head_dim": 256})
    assert not kernel(CacheConfig("paged", "int8"))
    assert not kernel(CacheConfig("paged", reads="gather"))


SMALL = override(
    Config(),
    {
        "model.num_layers": 2,
        "model.embed_dim": 256,
        "model.attention.num_heads": 4,
        "model.attention.num_kv_heads": 2,
        "model.attention.head_dim": 128,
        "model.mlp.hidden_dim": 512,
        "model.vocab_size": 1024,
        "model.max_length": 1024,
        "model.embedding.tied": False,
        "mesh.data": 1,
        "mesh.fsdp": 2,
        "mesh.tensor": 2,
    },
)


# A cache that fits the chip's own memory is copied there and back, and counts twice.
LONG = 65_536


@pytest.mark.compiler
@pytest.mark.parametrize(
    "kind, context, most",
    [
        (CacheConfig(), LONG, 1.1),
        (CacheConfig("paged"), LONG, 1.1),
        (CacheConfig(dtype="int8"), LONG, 1.6),
    ],
)
def test_a_step_moves_little_more_than_parameters_and_cache(kind, context, most):
    config = override(SMALL, {"model.max_length": context})
    target = parse_topology("v5e:2x2")
    p = plan_decode(config, target, batch=16, context=context, prompt=64, cache=kind)
    assert not p.step.refused
    # Weights of fsdp are gathered here, and a model this small has much beside its weights.
    assert 0.9 < p.step.moved_share < most
