"""Arithmetic of model FLOPs and MFU, by both conventions, and the peak it is stated against."""

from __future__ import annotations

import math
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from llm_jax import models
from llm_jax.config import Config, ModelConfig
from llm_jax.params.select import ALL, select
from llm_jax.types import ConfigError

# Dense bfloat16 peak of one device as jax counts devices, in TFLOP/s, from the makers' data sheets.
PEAK_TFLOPS = {
    "TPU v4": 275.0,
    "TPU v5 lite": 197.0,
    "TPU v5e": 197.0,
    "TPU v5": 459.0,
    "TPU v5p": 459.0,
    "TPU v6 lite": 918.0,
    "TPU v6e": 918.0,
    "TPU7x": 1153.5,
    "NVIDIA A100-SXM4-40GB": 312.0,
    "NVIDIA A100-SXM4-80GB": 312.0,
    "NVIDIA H100 80GB HBM3": 989.4,
    "NVIDIA H200": 989.4,
}


class Flops(NamedTuple):
    """Training FLOPs per token (forward and backward), by the two conventions in use.

    causal: counts the part of the attention matrix that a causal mask leaves.
    full: counts all of the attention matrix.
    """

    causal: float
    full: float


def matmul_parameters(m: ModelConfig) -> int:
    """Parameters that a token meets in a matrix product.

    They are the kernels (of experts, those that it goes through) and the output projection; not the
    embedding look-up, nor kernels that read whole rows. The layers of an encoder are not counted,
    since they meet the encoder's own tokens; of cross-attention, query and output are.
    """
    count = m.vocab_size * m.embed_dim
    for _, layer, layers in m.stacks:
        count += layers * _layer_parameters(layer)
    if m.encoder:
        count += m.num_layers * m.embed_dim * m.attention.num_heads * (m.head_dim + m.value_dim)
    if m.head.transform:
        count += m.embed_dim**2
    return count


def _layer_parameters(m: ModelConfig) -> int:
    """Of one layer; a recurrent one has neither attention nor an MLP."""
    if m.recurrent:
        return _recurrent_parameters(m)
    return _attention_parameters(m) + _mlp_parameters(m)


def _recurrent_parameters(m: ModelConfig) -> int:
    """Of the products of a layer with its input and its state, and of the projection if it is
    there.
    """
    D = m.embed_dim
    F = m.state_dim
    return 4 * F * (D + F) + (F * D if F != D else 0)


def _attention_parameters(m: ModelConfig) -> int:
    D = m.embed_dim
    H = m.head_dim
    V = m.value_dim
    N = m.attention.num_heads
    out = N * V * D
    latent = m.latent
    if latent is None:
        return D * (N * H + m.attention.kv_heads * (H + V)) + out
    C = latent.kv_latent
    R = latent.rope_dim
    queries = D * N * H
    if latent.q_latent:
        queries = latent.q_latent * (D + N * H)
    return queries + D * (C + R) + C * N * (H - R + V) + out


def _mlp_parameters(m: ModelConfig) -> int:
    one = m.embed_dim * m.mlp.hidden_dim * (3 if m.mlp.kind == "gated" else 2)
    if not m.experts:
        return one
    return one * (m.experts.per_token + m.experts.shared) + m.embed_dim * m.experts.count


def idle_parameters(m: ModelConfig) -> int:
    """Parameters of the experts that a token does not go through."""
    gates = 1 if m.mlp.kind == "gated" else 0
    one = m.embed_dim * m.mlp.hidden_dim * (2 + gates)
    if m.mlp.bias:
        one += m.embed_dim + m.mlp.hidden_dim * (1 + gates)
    return sum(
        layers * (c.experts.count - c.experts.per_token) * one
        for _, c, layers in m.stacks
        if c.experts
    )


def train_flops(m: ModelConfig, seq_length: int, encoder_length: int = 0) -> Flops:
    """6 per matmul parameter, and 6·N·(H + H'), H' the width of values, per key seen in each layer;
    a sliding window limits the keys.

    encoder_length: tokens S that an encoder reads for a row of ``seq_length`` T; its work is shared
    among these. Raises ConfigError where a model has an encoder and it is not given.
    """
    if m.encoder and not encoder_length:
        raise ConfigError(
            "model.encoder is 'on', and how many tokens the encoder reads is"
            " not known here: FLOPs cannot be counted; give train_flops its encoder_length"
        )
    of_key = 6.0 * m.attention.num_heads * (m.head_dim + m.value_dim)
    causal, full = (of_key * seen for seen in _keys_seen(m, m.num_layers, seq_length))
    if not m.causal:
        causal = full
    dense = 6.0 * matmul_parameters(m)
    if m.encoder:
        reads = m.encoder_stack
        made = m.num_layers * m.embed_dim * m.attention.kv_heads * (m.head_dim + m.value_dim)
        each = 6.0 * (matmul_parameters(reads) - m.vocab_size * m.embed_dim + made)
        each += of_key * _keys_seen(reads, reads.num_layers, encoder_length)[1]
        dense += each * encoder_length / seq_length + of_key * m.num_layers * encoder_length
    return Flops(dense + causal, dense + full)


def flops_of(config: Config) -> Flops:
    """Training FLOPs per token of ``data.seq_length``, with the parameters of ``train.trainable``.

    Of the 6 FLOPs of a parameter in a matrix product 2 are the forward product, 2 the gradient of
    the parameter, and 2 the gradient of the product's input. A frozen parameter has no gradient.
    The gradient of an input is counted where a parameter before it is trained: the loss's gradient
    flows back through frozen products down to the first trained parameter, and no further. The
    products of queries, keys and values have no parameters; their two gradients are counted like
    the gradient of an input.

    All layers of a stack are counted alike, as ``execution.layers`` scan computes them. Unrolled,
    the first layer of a stack with the first trained parameter has fewer products.
    """
    m = config.model
    whole = train_flops(m, config.data.seq_length, config.data.encoder_length)
    if config.train.trainable == ALL:
        return whole
    products = _products(config)
    reached = _reached(config, products)
    frozen = 2.0 * sum(p.size for p in products if not p.trained)
    inputs = 2.0 * sum(p.size for p in products if not reached[p.reads])
    left_out = frozen + inputs
    causal = left_out
    full = left_out
    for stage, seen in _attention_keys(config).items():
        if not reached[stage]:
            backward = 4.0 * m.attention.num_heads * (m.head_dim + m.value_dim)
            causal += backward * seen[0]
            full += backward * seen[1]
    return Flops(whole.causal - causal, whole.full - full)


# Modules of the parameters in the order of the forward pass; those before are inputs of the rest.
_STAGES = ("encoder", "first_layers", "layers", "final_norm", "head_transform", "head")
_INPUTS = "inputs"
# They read whole rows, and no objective over tokens trains them.
_OF_ROWS = ("pooler", "classes")


class _Product(NamedTuple):
    """A parameter, as a token meets it in matrix products.

    size: parameters met per token of ``data.seq_length``; 0 if they are in no product.
    stage: the module that it belongs to.
    reads: the stage whose reached gradient makes the gradient of the product's input.
    trained: whether it has a gradient.
    """

    size: float
    stage: str
    reads: str
    trained: bool


def _products(config: Config) -> list[_Product]:
    """All parameters of the model, but those that only read whole rows."""
    m = config.model
    model = models.build(m)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    chosen = select(config.train.trainable, model.specs, "train.trainable")
    flat = jax.tree_util.tree_flatten_with_path(shapes)[0]
    found = []
    for (path, array), spec, trained in zip(
        flat, jax.tree.leaves(model.specs), jax.tree.leaves(chosen)
    ):
        names = jax.tree_util.keystr(path, simple=True, separator="/").split("/")
        if names[0] in _OF_ROWS:
            continue
        stage = names[0] if names[0] in _STAGES else _INPUTS
        memory = "cross_attention" in names and ("key" in names or "value" in names)
        size = 0.0
        if spec.role in ("matrix", "router", "head"):
            size = float(math.prod(array.shape))
        if m.experts and "expert" in spec.axes:
            size *= m.experts.per_token / m.experts.count
        if stage == "encoder" or memory:
            size *= config.data.encoder_length / config.data.seq_length
        found.append(_Product(size, stage, "encoder" if memory else _reads(stage), trained))
        if names == ["embed", "embedding"] and m.embedding.tied:
            found.append(_Product(float(math.prod(array.shape)), "head", _reads("head"), trained))
    return found


def _reads(stage: str) -> str:
    """The stage whose reached gradient makes the gradient of the inputs of a stage's products: of
    a stack itself, since its layers read each other, and of the others the stage before.
    """
    if stage in ("head_transform", "head"):
        return _STAGES[_STAGES.index(stage) - 1]
    return stage


def _reached(config: Config, products: list[_Product]) -> dict[str, bool]:
    """Whether the gradient of the loss flows into each stage: whether a parameter of it, or of one
    before it, is trained.
    """
    trained = {product.stage for product in products if product.trained}
    reached = {}
    so_far = False
    for stage in (_INPUTS, *_STAGES):
        so_far = so_far or stage in trained
        reached[stage] = so_far
    return reached


def _attention_keys(config: Config) -> dict[str, tuple[float, float]]:
    """Keys that a token sees in all layers of each stack: under a causal mask, and under none."""
    m = config.model
    data = config.data
    seen = {}
    first = 0
    for stage, _, layers in m.stacks:
        causal, full = _keys_seen(m, layers, data.seq_length, first)
        memory = float(layers * data.encoder_length) if m.encoder else 0.0
        seen[stage] = ((causal if m.causal else full) + memory, full + memory)
        first += layers
    if m.encoder:
        _, full = _keys_seen(m, m.encoder.num_layers, data.encoder_length)
        share = full * data.encoder_length / data.seq_length
        seen["encoder"] = (share, share)
    return seen


def _keys_seen(m: ModelConfig, layers: int, length: int, first: int = 0) -> tuple[float, float]:
    """Keys that a token of a row of ``length`` sees on average in all of ``layers`` from ``first``
    on: under a causal mask, and under none; 0 without attention.
    """
    if m.recurrent:
        return 0.0, 0.0
    windows = [min(m.window(first + layer) or length, length) for layer in range(layers)]
    return sum(w - w**2 / (2 * length) for w in windows), float(sum(windows))


class Peak(NamedTuple):
    """FLOP/s of one device and where the figure is from."""

    flops: float
    source: str


def device_peak(stated_tflops: float, dtype: str) -> Peak:
    """The peak MFU is stated against: the one given, that of the device's data sheet, or a matmul
    measured now.
    """
    kind = jax.devices()[0].device_kind
    if stated_tflops:
        return Peak(stated_tflops * 1e12, "train.peak_tflops")
    if kind in PEAK_TFLOPS and dtype == "bfloat16":
        return Peak(PEAK_TFLOPS[kind] * 1e12, f"data sheet of {kind}, dense bfloat16")
    shared = jax.default_backend() == "cpu" and jax.local_device_count() > 1
    where = f"{kind} ({jax.local_device_count()} devices share its cores)" if shared else kind
    return Peak(measure_matmul(dtype), f"{dtype} matmul measured on this {where}")


def measure_matmul(dtype: str, size: int = 0, repeats: int = 5) -> float:
    """FLOP/s per device of the best of ``repeats`` square matrix products. On CPU all devices share
    the cores.
    """
    cpu = jax.default_backend() == "cpu"
    size = size or (1024 if cpu else 8192)
    x = jnp.asarray(np.random.default_rng(0).standard_normal((size, size)), dtype)
    multiply = jax.jit(lambda a, b: a @ b)
    jax.block_until_ready(multiply(x, x))
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        y = x
        for _ in range(4):
            y = multiply(y, x)
        jax.block_until_ready(y)
        best = min(best, (time.perf_counter() - start) / 4)
    return 2.0 * size**3 / best / (jax.local_device_count() if cpu else 1)
