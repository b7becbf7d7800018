"""Every kind of model, small, with what a user computes of it: derivatives of a loss, and decoding.

All results are sums over rows, so that they are the same however the rows are spread.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from packed_rows import pack_rows
from parameters import random_parameters

from llm_jax.config import ExecutionConfig, ModelConfig, override
from llm_jax.decode.programs import decode_step, extend, read
from llm_jax.models import Model, build, rows_of
from llm_jax.types import Batch, Params

# Of four devices each has a row.
ROWS = [
    [[1, 2, 3], [4, 5, 6, 7]],
    [[8, 9, 10, 11, 12, 13, 14, 15]],
    [[16, 17], [18, 19, 20]],
    [[21, 22, 23, 24, 25]],
]
T = 8
BASE = override(
    ModelConfig(),
    {
        "vocab_size": 32,
        "num_layers": 1,
        "embed_dim": 16,
        "attention.num_heads": 4,
        "mlp.hidden_dim": 24,
        "max_length": 16,
        "init_std": 0.3,
    },
)
BIASES = {
    "norm": "layer",
    "norm.bias": True,
    "mlp": "plain",
    "mlp.bias": True,
    "attention.qkv_bias": True,
    "attention.out_bias": True,
}
# What only transformers have, at its default.
NO_TRANSFORMER = {"attention.num_heads": 12, "mlp.hidden_dim": 3072}
KINDS: dict[str, dict[str, Any]] = {
    "dense": {},
    "biases": BIASES | {"positions": "learned", "mlp.activation": "gelu_tanh"},
    "grouped": {
        "attention.num_kv_heads": 2,
        "attention.qk_norm": "head",
        "embedding.tied": False,
        "norm.position": "sandwich",
        "attention.softcap": 5.0,
        "head.softcap": 3.0,
    },
    "windows": {
        "num_layers": 2,
        "attention.window_pattern": (3,),
        "parallel_residual": True,
        "positions.fraction": 0.5,
    },
    "latent": {
        "attention": "latent",
        "attention.kv_latent": 12,
        "attention.q_latent": 10,
        "attention.rope_dim": 2,
        "num_layers": 2,
        "first_layers.count": 1,
        "first_layers.mlp_dim": 20,
    },
    "experts": {
        "experts.count": 4,
        "experts.per_token": 2,
        "experts.shared": 1,
        "experts.balance": "bias",
        "experts.router_z_loss": 0.1,
    },
    "sinks": {
        "attention.sinks": True,
        "attention.window_pattern": (3,),
        "attention.qkv_bias": True,
        "mlp.bias": True,
        "mlp.clamp": 0.5,
        "mlp.up_offset": 1.0,
        "experts.count": 4,
        "experts.per_token": 2,
    },
    "encoder": BIASES
    | {
        "causal": False,
        "embedding.norm": True,
        "embedding.token_types": 2,
        "head.transform": "on",
        "head.bias": True,
        "norm.position": "post",
        "norm.final": False,
        "positions": "learned",
        "positions.offset": 2,
    },
    "encoder-decoder": {
        "encoder.num_layers": 1,
        "encoder.start_token": 5,
        "positions": "relative",
        "positions.buckets": 8,
        "positions.max_distance": 6,
    },
    "recurrent": NO_TRANSFORMER
    | {"recurrent": "lstm", "recurrent.hidden_dim": 24, "num_layers": 2, "embedding.tied": False},
    "original": BIASES
    | {
        "encoder.num_layers": 1,
        "encoder.start_token": 5,
        "positions": "sinusoidal",
        "norm.position": "post",
        "norm.final": False,
    },
}
# How they run, beside the plainest way.
EXECUTION: dict[str, dict[str, Any]] = {
    "windows": {"layers": "scan", "remat": "full"},
    "grouped": {"attention": "blockwise"},
    "biases": {"attention": "dot_product", "remat": "dots"},
}
# Sums over rows, by name.
Sums = dict[str, Any]
Computation = Callable[[Params, Batch], Sums]


@functools.cache
def made(kind: str, dtype: str = "float32") -> tuple[Model, Params]:
    """The model of a kind and random parameters."""
    attention = "auto" if kind == "recurrent" else "xla"
    options = {"layers": "unroll", "attention": attention} | EXECUTION.get(kind, {})
    model = build(override(BASE, KINDS[kind]), ExecutionConfig(**options, compute_dtype=dtype))
    return model, random_parameters(model)


def batch_of(kind: str) -> Batch:
    """Four rows, of which two have two documents."""
    batch = pack_rows(ROWS, T)
    if kind not in ("encoder-decoder", "original"):
        return batch
    read = pack_rows([[document[::-1] for document in row] for row in ROWS], T)
    return batch._replace(encoder=read.inputs)


def loss(model: Model, params: Params, batch: Batch) -> Array:
    """Negative log-likelihood and the terms of the model itself, summed over tokens."""
    out = model.apply(params, batch)
    logits = jax.nn.log_softmax(model.logits(params, out.hidden))
    chosen = jnp.sum(logits * jax.nn.one_hot(batch.targets, logits.shape[-1]), axis=-1)
    return sum(out.aux.values()) - jnp.sum(chosen * batch.loss_mask)


def gradient(model: Model) -> Computation:
    """The loss and its gradient."""

    def compute(params: Params, batch: Batch) -> Sums:
        value, slopes = jax.value_and_grad(lambda params: loss(model, params, batch))(params)
        return {"loss": value, "gradient": slopes}

    return compute


def derivatives(model: Model) -> Computation:
    """The loss, its gradient, and the derivatives of both along one direction."""

    def compute(params: Params, batch: Batch) -> Sums:
        both = jax.value_and_grad(lambda params: loss(model, params, batch))
        direction = jax.tree.map(jnp.cos, params)
        (value, gradient), (slope, product) = jax.jvp(both, (params,), (direction,))
        return {"loss": value, "gradient": gradient, "slope": slope, "product": product}

    return compute


def decoding(model: Model) -> Computation:
    """Logits after prompts that begin in a cache, after a chunk more, and after one token more."""

    def compute(params: Params, batch: Batch) -> Sums:
        ids = batch.inputs.ids
        cache = model.init_cache(
            ids.shape[0], 2 * T, encoder_length=T if model.config.encoder else 0
        )
        prompt = rows_of(ids[:, :3], jnp.minimum(ids[:, 0] % 4 + 1, 3))
        after_prompt, cache = read(model, params, prompt._replace(encoder=batch.encoder), cache)
        hidden, cache = extend(model, params, ids[:, 3:5], jnp.minimum(ids[:, 3], 1) + 1, cache)
        after_token, cache = decode_step(model, params, ids[:, 5], cache)
        return {
            "prompt": jnp.sum(after_prompt, axis=0),
            "chunk": jnp.sum(model.logits(params, hidden[:, 0]), axis=0),
            "token": jnp.sum(after_token, axis=0),
            "lengths": jnp.sum(cache.length),
        }

    return compute


COMPUTATIONS: dict[str, Callable[[Model], Computation]] = {
    "gradient": gradient,
    "decoding": decoding,
    "derivatives": derivatives,
}


@functools.cache
def compiled(kind: str, computation: str) -> Computation:
    """The computation of the model of a kind, on one device."""
    return jax.jit(COMPUTATIONS[computation](made(kind)[0]))


@functools.cache
def expected(kind: str, computation: str) -> Sums:
    """Its result."""
    return compiled(kind, computation)(made(kind)[1], batch_of(kind))


def assert_close(actual: Any, wanted: Any, tolerance: float = 5e-5) -> None:
    """Trees of arrays are the same within a share of the largest number of each array."""
    assert jax.tree.structure(actual) == jax.tree.structure(wanted)
    leaves = jax.tree_util.tree_leaves_with_path(actual)
    for (path, a), b in zip(leaves, jax.tree.leaves(wanted)):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        name = jax.tree_util.keystr(path)
        bound = tolerance * max(1.0, float(np.abs(b).max()))
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=bound, err_msg=name)
