"""Peak memory of a train step on a TPU, estimated without compiling it.

The estimate lists the buffers that are alive at the worst moments of a scan over layers with splash
or blockwise attention. The list follows the compiler's schedules; a test compares it with what the
compiler reported of steps that were compiled (``tests/plan/peak_memory.json``).
"""

from __future__ import annotations

from collections.abc import Mapping

from llm_jax.config import Config
from llm_jax.config.positions import RelativePositionsConfig, RopeConfig
from llm_jax.config.sections import value_of
from llm_jax.config.validate import remat_names
from llm_jax.plan.shares import PerDevice, shapes, shares, ways_of
from llm_jax.training.step import pick_loss_chunk

# The last dimension of an array in the TPU's memory is padded to a vector register.
_LANES = 128
# Settings of the model whose effect on memory is not modelled -> (their value without it, what
# they are).
_UNKNOWN = {
    "attention": ("multi_head", "latents"),
    "attention.value_dim": (0, "values of another width"),
    "first_layers": ("none", "first layers"),
    "mlp.clamp": (0.0, "a clamp"),
}
# The largest ratio between estimate and compiler that a test accepts.
MARGIN = 1.1


def unknown(config: Config) -> str:
    """Why memory cannot be estimated: such a step was never compared with the compiler.

    Returns:
        The reason, or an empty string where there is an estimate.
    """
    m = config.model
    kinds = {
        "encoder": m.encoder is not None,
        "causal": not m.causal,
        "positions": isinstance(m.positions, RelativePositionsConfig),
    }
    for name, is_unknown in kinds.items():
        if is_unknown:
            return (
                f"model.{name} is {value_of(m, name)!r}; memory is estimated, and ways to run"
                " searched, of decoders without a bias only"
            )
    for name, (off, what) in _UNKNOWN.items():
        value = value_of(m, name)
        if value is not None and value != off:
            return (
                f"model.{name} is {value}; memory is estimated, and ways to run searched, without"
                f" {what} only"
            )
    return _unknown_offload(config)


def _unknown_offload(config: Config) -> str:
    remat = config.execution.remat
    if not remat.startswith("offload:"):
        return ""
    if config.model.experts:
        other = f"model.experts.count {config.model.experts.count}"
    elif config.mesh.pipeline != 1:
        other = f"mesh.pipeline {config.mesh.pipeline}"
    else:
        return ""
    return (
        f"execution.remat is {remat!r} and {other}; memory is estimated, and ways to run searched,"
        " with one of them only"
    )


def saved_per_layer(config: Config, mesh: Mapping[str, int], d: PerDevice) -> float:
    """Bytes that a layer's forward pass saves for its backward pass, of one microbatch.

    The layer's weights are not counted.
    """
    m = config.model
    policy = config.execution.remat
    # Attention's kernel takes arrays with the heads' dimension last.
    wide = 2 * d.tokens * max(m.head_dim, _LANES)
    attention = d.heads * (wide + 4 * d.tokens)
    if policy == "none":
        return _saved_without_remat(config, mesh, d, wide=wide, attention=attention)
    carry = 2 * d.between * m.embed_dim
    # Offloaded activations are in the host's memory.
    if policy == "full" or policy.startswith("offload:"):
        return carry
    names = {
        "query": d.heads * wide,
        "key": d.keys * wide,
        "value": d.keys * wide,
        "attention_out": attention,
        "mlp_hidden": 2 * d.tokens * d.mlp,
        # Only a norm after the MLP needs it in the backward pass.
        "mlp_out": 0 if m.norm.position == "pre" else carry,
    }
    if policy == "dots":
        products = 2 * d.tokens * d.mlp * (2 if m.mlp.kind == "gated" else 1)
        heads = sum(names[name] for name in ("query", "key", "value", "attention_out"))
        return 2 * carry + products + heads
    return carry + sum(names[name] for name in remat_names(policy))


def _saved_without_remat(
    config: Config, mesh: Mapping[str, int], d: PerDevice, *, wide: float, attention: float
) -> float:
    """``saved_per_layer`` where nothing is recomputed.

    Args:
        config: the config.
        mesh: the size of every axis.
        d: what a device holds.
        wide: bytes of one head.
        attention: bytes of attention's output and normalizer.
    """
    m = config.model
    # Each norm saves three float32 copies, each product its gathered input; the MLP saves its
    # products and what the activation's gradient needs.
    qk_norm = 3 * 2 * (d.heads + d.keys) * wide if m.attention.normalized_axes else 0
    norms = 2 * 3 * 4 * d.between * m.embed_dim + 2 * 2 * d.tokens * m.embed_dim + qk_norm
    dense = 2 * d.tokens * d.mlp * _hidden_arrays(config)
    mlp = dense + experts_saved(config, d) + _kept_with_experts(config, mesh, d)
    heads = (d.heads + 2 * d.keys) * wide
    return norms + mlp + heads + attention + 2 * d.tokens * d.heads * m.head_dim


def _hidden_arrays(config: Config) -> int:
    """Arrays of the MLP's hidden width that its backward pass needs."""
    return 6 if config.model.mlp.kind == "gated" else 3


def experts_saved(config: Config, d: PerDevice) -> float:
    """Bytes that the experts' forward pass saves for their backward pass; 0 without experts.

    Counted for all rows that there is room for, used or not: the sorted rows, their hidden units,
    and a byte each for which of both are used.
    """
    D = config.model.embed_dim
    return d.routed * (2 * D + 2 * d.width * _hidden_arrays(config) + D + d.width)


def _kept_with_experts(config: Config, mesh: Mapping[str, int], d: PerDevice) -> float:
    """Further bytes of experts that are saved where nothing is recomputed.

    These are the experts' outputs and each token's choice in float32, and the gathered kernels.
    """
    m = config.model
    kernels = 2 * d.experts if ways_of("expert_embed", mesh) > 1 else 0
    return 4 * d.chosen * (m.embed_dim + max(m.experts.count if m.experts else 0, _LANES)) + kernels


def peak(config: Config, mesh: Mapping[str, int]) -> dict[str, float]:
    """Bytes of a device by purpose at the worst of four moments of a step.

    Args:
        config: the config; its vocabulary must be known.
        mesh: the size of every axis.

    Raises:
        ConfigError: a dimension does not divide over the mesh.
    """
    d = shares(config, mesh)
    s = shapes(config.model, config.optimizer, config.train.trainable)
    held = d.parameters.layers + d.parameters.rest
    trained = d.parameters.trained_layers + d.parameters.trained_rest
    return {
        "parameters": 4 * held,
        "optimizer state": 4 * trained * s.optimizer_ratio + s.optimizer_whole,
        # Four int32 and a bool for each token.
        "batch": 17.0 * d.pieces * d.rows * config.data.seq_length,
        **max(_moments(config, mesh, d), key=lambda moment: sum(moment.values())),
    }


def _moments(config: Config, mesh: Mapping[str, int], d: PerDevice) -> list[dict[str, float]]:
    """Temporaries in the forward loop, the backward loop, the loss, and the optimizer's update."""
    embed_dim = config.model.embed_dim
    layers = d.parameters.layers
    trained = d.parameters.trained_layers + d.parameters.trained_rest
    staged = d.plan.stages > 1
    accumulated = d.pieces > 1
    step = d.plan.layers * saved_per_layer(config, mesh, d)
    # Every step of a pipeline saves its part.
    saved = d.plan.steps * (step + angles(config, d))
    during = saved
    if staged:
        # While a stage works, its current step's activations are alive too, and the microbatches,
        # or their gradients, wait for their turn.
        during = saved + step + d.plan.microbatches * 2 * d.between * embed_dim
    head = 2 * d.vocab * embed_dim
    # The layers' weights are cast to bfloat16 before the loops and handed from the forward to the
    # backward loop. Between accumulation steps the first copy stays, as does the output
    # projection, which a single step no longer needs in the backward loop.
    weights = 2 * layers * (2 if accumulated else 1)
    head_kept = head if accumulated else 0
    # Gradients: the sum over accumulation steps; what the backward loop writes, in a pipeline for
    # each step beside the sum; and those of the other kernels, in bfloat16. Frozen parameters have
    # none.
    summed = 4 * trained if accumulated else 0
    written = 4 * d.parameters.trained_layers * (2 if staged else 1)
    rest = 2 * d.parameters.trained_rest
    backward = _backward(config, mesh, d)
    return [
        _moment(summed, during, weights + head, _forward(config, d)),
        _moment(summed + written + rest, during, weights + head_kept, backward),
        _moment(summed + rest, saved, weights + head, _loss(config, mesh, d) + head),
        _moment(4 * trained, 0, 0, 0),
    ]


def angles(config: Config, d: PerDevice) -> float:
    """Bytes of the cosines and sines of a microbatch's positions that each pipeline step saves.

    0 without stages, where they are made once.
    """
    if isinstance(config.model.positions, RopeConfig) and d.plan.stages > 1:
        return 4 * d.tokens * config.model.head_dim
    return 0.0


def _moment(gradients: float, saved: float, weights: float, work: float) -> dict[str, float]:
    return {
        "gradients": gradients,
        "saved activations": saved,
        "weights in use": weights,
        "working space": work,
    }


def _forward(config: Config, d: PerDevice) -> float:
    """Bytes of working space of a layer's forward pass.

    These are the heads, rotated in float32, attention's output, and the MLP's products.
    """
    head = 2 * d.tokens * max(config.model.head_dim, _LANES)
    return 9 * d.heads * head + 3 * 2 * d.tokens * d.mlp


def _backward(config: Config, mesh: Mapping[str, int], d: PerDevice) -> float:
    """Bytes of working space of a layer's backward pass: of attention or the MLP, the larger."""
    m = config.model
    offloaded = config.execution.remat.startswith("offload:")
    recomputed = offloaded or config.execution.remat == "full"
    head = 2 * d.tokens * max(m.head_dim, _LANES)
    # Gradients of queries and keys and their rotated halves; where recomputed, attention's output
    # and its normalizer (float32, one lane wide).
    attention = head * ((7 if recomputed else 4) * d.heads + 3 * d.keys)
    # Gate, up, their gradients, and that of their product; where recomputed, attention's output
    # and normalizer too.
    mlp = 5 * 2 * d.tokens * d.mlp + (3 * d.heads * head if recomputed else 0)
    # Copies from the host delay the products for the MLP's kernels: gate, up and their gradients
    # are still alive in attention's backward pass.
    attention += 4 * 2 * d.tokens * d.mlp if offloaded else 0
    layer = 2 * d.parameters.worked_layers / (d.plan.layers * d.plan.repeats)
    # The gradient of the hidden states in bfloat16, and in float32 as the loss makes it.
    hidden = 2 * d.between * m.embed_dim + 4 * d.outer * d.between / d.tokens * m.embed_dim
    # Tensor parallelism gathers a layer's input and the gradient of its output along positions.
    gathered = 2 * 2 * d.tokens * m.embed_dim if mesh["tensor"] > 1 else 0
    return max(attention, mlp, _experts_backward(config, mesh, d)) + layer + hidden + gathered


def _experts_backward(config: Config, mesh: Mapping[str, int], d: PerDevice) -> float:
    """Bytes of working space when the experts' backward pass begins.

    These are the activations of their forward pass, recomputed or copied for kernels that take
    whole arrays; attention's heads where they are recomputed too; and the larger of two: the
    experts' outputs in float32, for the gradient of the routing weights, with the rows' gradient
    as it arrived and sorted; or the sorted gradient and a mask of each expert's rows, one lane
    wide.
    """
    if not d.routed:
        return 0.0
    m = config.model
    head = 2 * d.tokens * max(m.head_dim, _LANES)
    attention = (2 * d.heads + 2 * d.keys) * head if config.execution.remat == "full" else 0
    gradient = 2 * d.routed * m.embed_dim
    assert m.experts is not None
    mask = d.routed * m.experts.count / mesh["expert"] * _LANES
    arriving = 4 * d.chosen * m.embed_dim + (2 * gradient if mesh["expert"] > 1 else 0)
    return attention + experts_saved(config, d) + max(arriving, gradient + mask)


def _loss(config: Config, mesh: Mapping[str, int], d: PerDevice) -> float:
    """Bytes of working space of one vocabulary chunk of the loss.

    These are logits, their exponentials and gradient in float32, and the hidden states and their
    gradient.
    """
    rows = int(d.rows / d.plan.stages * config.data.seq_length)
    chunk = config.execution.loss_chunk or pick_loss_chunk(
        rows, config.model.vocab_size, mesh["tensor"]
    )
    return 3 * 4 * d.outer * chunk / mesh["tensor"] + (2 + 4) * d.outer * config.model.embed_dim
