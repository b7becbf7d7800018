"""Arithmetic of model FLOPs and MFU, by both conventions, and the peak it is stated against."""

from __future__ import annotations

import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from llm_jax.config import Config, ModelConfig
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

    causal counts the half of the attention matrix that a causal mask leaves; full counts all of it.
    """

    causal: float
    full: float


def matmul_parameters(m: ModelConfig) -> int:
    """Parameters that a token meets in a matrix product: kernels, of experts those it goes through,
    and the output projection; not the embedding look-up, nor what is of whole rows. An encoder's
    layers are not among them, as they meet its own tokens: what a decoder's token meets of
    attention to them are query and output.
    """
    one = sum(
        layers * (_attention_parameters(m) + _mlp_parameters(layer))
        for _, layer, layers in m.stacks
    )
    cross = (
        m.num_layers * m.embed_dim * m.attention.num_heads * (m.head_dim + m.value_dim)
        if m.encoder
        else 0
    )
    transform = m.embed_dim**2 if m.head.transform else 0
    return one + cross + transform + m.vocab_size * m.embed_dim


def _attention_parameters(m: ModelConfig) -> int:
    H, N, K, D, V = (
        m.head_dim,
        m.attention.num_heads,
        m.attention.kv_heads,
        m.embed_dim,
        m.value_dim,
    )
    latent = m.latent
    if latent is None:
        return D * (N * H + K * (H + V)) + N * V * D
    C, R, Q = latent.kv_latent, latent.rope_dim, latent.q_latent
    queries = D * Q + Q * N * H if Q else D * N * H
    return queries + D * (C + R) + C * N * (H - R + V) + N * V * D


def _mlp_parameters(m: ModelConfig) -> int:
    one = m.embed_dim * m.mlp.hidden_dim * (3 if m.mlp.kind == "gated" else 2)
    experts = m.experts
    if experts is None:
        return one
    return one * (experts.per_token + experts.shared) + m.embed_dim * experts.count


def idle_parameters(m: ModelConfig) -> int:
    """Parameters of the experts that a token does not go through."""
    kernels, biases = (
        (3, m.embed_dim + 2 * m.mlp.hidden_dim)
        if m.mlp.kind == "gated"
        else (2, m.embed_dim + m.mlp.hidden_dim)
    )
    one = m.embed_dim * m.mlp.hidden_dim * kernels + (biases if m.mlp.bias else 0)
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
    """``train_flops`` of a run, per token of ``data.seq_length``."""
    return train_flops(config.model, config.data.seq_length, config.data.encoder_length)


def _keys_seen(m: ModelConfig, layers: int, length: int) -> tuple[float, float]:
    """Keys that a token of a row of ``length`` sees in all layers, on average: under a causal mask,
    and under none.
    """
    windows = [min(m.window(layer) or length, length) for layer in range(layers)]
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
