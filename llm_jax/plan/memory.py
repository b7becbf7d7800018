"""Peak memory of a train step on a TPU without compiling it: what is alive at its worst moments,
buffer by buffer.

The list was read from what the compiler keeps alive in its schedules;
``tests/plan/peak_memory.json`` has what it said of steps that were compiled, and a test compares.
It is that of a scan over layers with splash or blockwise attention.
"""

from __future__ import annotations

from collections.abc import Mapping

from llm_jax.config import Config
from llm_jax.config.validate import remat_names
from llm_jax.plan.shares import PerDevice, shapes, shares, ways_of
from llm_jax.training.step import pick_loss_chunk

# The last dimension of an array in the TPU's memory is filled up to a vector register.
_LANES = 128
# Fields of the model of which it does not know what they do to memory, where they are set.
_UNKNOWN = {
    "kv_latent": "latents",
    "value_dim": "values of another width",
    "first_layers": "first layers",
    "mlp_clamp": "a clamp",
}
# What the estimate may be off by; a test holds it to that.
MARGIN = 1.1


def unknown(config: Config) -> str:
    """Why there is no estimate: none of such steps was compared with the compiler. Empty where
    there is one.
    """
    m, remat, stages = config.model, config.execution.remat, config.mesh.pipeline
    kinds = {
        "encoder_layers": m.encoder_layers > 0,
        "causal": not m.causal,
        "positions": m.positions == "relative",
    }
    if name := next((name for name, on in kinds.items() if on), ""):
        return (
            f"model.{name} is {getattr(m, name)!r}; memory is estimated, and ways to run searched,"
            " of decoders without a bias only"
        )
    for name, what in _UNKNOWN.items():
        if value := getattr(m, name):
            return (
                f"model.{name} is {value}; memory is estimated, and ways to run searched, without"
                f" {what} only"
            )
    other = (
        f"model.num_experts {m.num_experts}"
        if m.num_experts
        else f"mesh.pipeline {stages}"
        if stages != 1
        else ""
    )
    if remat.startswith("offload:") and other:
        return (
            f"execution.remat is {remat!r} and {other}; memory is estimated, and ways to run"
            " searched, with one of them only"
        )
    return ""


def saved_per_layer(config: Config, mesh: Mapping[str, int], d: PerDevice) -> float:
    """Bytes that a layer's forward pass leaves to its backward pass, beside its weights, of one
    microbatch.
    """
    m, policy = config.model, config.execution.remat
    H, D = m.head_size, m.embed_dim
    # As attention's kernel takes them, heads are last.
    wide = 2 * d.tokens * max(H, _LANES)
    attention = d.heads * (wide + 4 * d.tokens)
    if policy == "none":
        # Of each norm three float32 copies; kernels' inputs, gathered; of the MLP its products and
        # what the activation's gradient needs.
        norms = (
            2 * 3 * 4 * d.between * D
            + 2 * 2 * d.tokens * D
            + (3 * 2 * (d.heads + d.keys) * wide if m.qk_norm else 0)
        )
        mlp = (
            2 * d.tokens * d.mlp * _hidden(config)
            + experts_saved(config, d)
            + _kept_with_experts(config, mesh, d)
        )
        return norms + mlp + (d.heads + 2 * d.keys) * wide + attention + 2 * d.tokens * d.heads * H
    carry = 2 * d.between * D
    # What is offloaded waits in the host's memory.
    if policy == "full" or policy.startswith("offload:"):
        return carry
    names = {
        "query": d.heads * wide,
        "key": d.keys * wide,
        "value": d.keys * wide,
        "attention_out": attention,
        "mlp_hidden": 2 * d.tokens * d.mlp,
        # Only a norm after it has a use for it in the backward pass.
        "mlp_out": 0 if m.norm_position == "pre" else carry,
    }
    if policy == "dots":
        products = 2 * d.tokens * d.mlp * (2 if m.mlp == "gated" else 1)
        return (
            2 * carry
            + products
            + sum(names[name] for name in ("query", "key", "value", "attention_out"))
        )
    return carry + sum(names[name] for name in remat_names(policy))


def _hidden(config: Config) -> int:
    """Arrays of the MLP's hidden width that its backward pass needs: its products, and what the
    activation's gradient does.
    """
    return 6 if config.model.mlp == "gated" else 3


def experts_saved(config: Config, d: PerDevice) -> float:
    """Bytes that the experts' forward pass leaves to their backward pass, for all rows that there
    is room for, used or not: the rows in order, their hidden units, and which of both are real, a
    byte for each. 0 without experts.
    """
    D = config.model.embed_dim
    return d.routed * (2 * D + 2 * d.width * _hidden(config) + D + d.width)


def _kept_with_experts(config: Config, mesh: Mapping[str, int], d: PerDevice) -> float:
    """Bytes that stay besides where nothing is recomputed: what came back from the experts, and
    which each token chose, in float32; and their kernels as they were gathered.
    """
    m = config.model
    return 4 * d.chosen * (m.embed_dim + max(m.num_experts, _LANES)) + (
        2 * d.experts if ways_of("expert_embed", mesh) > 1 else 0
    )


def peak(config: Config, mesh: Mapping[str, int]) -> dict[str, float]:
    """Bytes of a device by purpose at the worst of four moments. mesh: the size of every axis. The
    vocabulary must be known.

    Raises ConfigError where a dimension does not divide over the mesh.
    """
    m, d, s = config.model, shares(config, mesh), shapes(config.model, config.optimizer)
    held, layers = d.parameters.layers + d.parameters.rest, d.parameters.layers
    staged, accumulated = d.plan.stages > 1, d.pieces > 1
    step = d.plan.layers * saved_per_layer(config, mesh, d)
    # Every step of a pipeline leaves its part.
    saved = d.plan.steps * (step + angles(config, d))
    # While stages work, that of the step at work stands beside it, and microbatches, or their
    # gradients, wait for their turn.
    during = saved + step + d.plan.microbatches * 2 * d.between * m.embed_dim if staged else saved
    head = 2 * d.vocab * m.embed_dim
    # The layers' weights in bfloat16 are cast before the loops and handed from the forward to the
    # backward one; between accumulation steps the first copy stays, and the output projection,
    # which one step alone is done with before the backward loop.
    weights = 2 * layers * (2 if accumulated else 1)
    # The sum over accumulation steps; what the backward loop writes, of a pipeline for each of its
    # steps beside their sum; of the other kernels, still in bfloat16.
    summed, written, rest = (
        4 * held if accumulated else 0,
        4 * layers * (2 if staged else 1),
        2 * d.parameters.rest,
    )
    moments = [
        _moment(summed, during, weights + head, _forward(config, d)),
        _moment(
            summed + written + rest,
            during,
            weights + (head if accumulated else 0),
            _backward(config, mesh, d),
        ),
        _moment(summed + rest, saved, weights + head, _loss(config, mesh, d) + head),
        _moment(4 * held, 0, 0, 0),
    ]
    return {
        "parameters": 4 * held,
        "optimizer state": 4 * held * s.optimizer_ratio + s.optimizer_whole,
        # Four int32 and a bool for each token.
        "batch": 17.0 * d.pieces * d.rows * config.data.seq_length,
        **max(moments, key=lambda moment: sum(moment.values())),
    }


def angles(config: Config, d: PerDevice) -> float:
    """Bytes of the cosines and sines of a microbatch's positions, which a stage makes, and leaves
    to its backward pass, in each step; without stages they are made once.
    """
    return (
        4 * d.tokens * config.model.head_size
        if config.model.positions == "rope" and d.plan.stages > 1
        else 0.0
    )


def _moment(gradients: float, saved: float, weights: float, work: float) -> dict[str, float]:
    return {
        "gradients": gradients,
        "saved activations": saved,
        "weights in use": weights,
        "working space": work,
    }


def _forward(config: Config, d: PerDevice) -> float:
    """Working space of one layer's forward pass: heads, turned in float32, and attention's output,
    beside the MLP's products.
    """
    head = 2 * d.tokens * max(config.model.head_size, _LANES)
    return 9 * d.heads * head + 3 * 2 * d.tokens * d.mlp


def _backward(config: Config, mesh: Mapping[str, int], d: PerDevice) -> float:
    """Working space of one layer's backward pass: that of attention or of the MLP, whichever is
    more.
    """
    m, offloaded = config.model, config.execution.remat.startswith("offload:")
    again = offloaded or config.execution.remat == "full"
    head = 2 * d.tokens * max(m.head_size, _LANES)
    # Gradients of queries and keys and their rotated halves; recomputed, attention's output and its
    # normaliser (float32, one lane wide).
    attention = head * ((7 if again else 4) * d.heads + 3 * d.keys)
    # Gate, up and their gradients, and that of their product; recomputed, attention's output and
    # normaliser are there too.
    mlp = 5 * 2 * d.tokens * d.mlp + (3 * d.heads * head if again else 0)
    # Copies from the host put off the products for the MLP's kernels: gate, up and their gradients
    # are still there in attention's pass.
    attention += 4 * 2 * d.tokens * d.mlp if offloaded else 0
    layer = 2 * d.parameters.worked_layers / (d.plan.layers * d.plan.repeats)
    # The gradient of the hidden states in bfloat16, and in float32 as the loss made it.
    hidden = 2 * d.between * m.embed_dim + 4 * d.outer * d.between / d.tokens * m.embed_dim
    # With tensor parallelism a layer's input and the gradient of its output are gathered from their
    # positions.
    gathered = 2 * 2 * d.tokens * m.embed_dim if mesh["tensor"] > 1 else 0
    return max(attention, mlp, _experts_backward(config, mesh, d)) + layer + hidden + gathered


def _experts_backward(config: Config, mesh: Mapping[str, int], d: PerDevice) -> float:
    """Working space when the experts' backward pass begins: what their forward pass left,
    recomputed or copied out of what was saved for kernels that take whole arrays, beside
    attention's heads where these are recomputed too; and then either what came back from the
    experts, in float32, for the gradient of its weights, with the rows' gradient as it came from
    other devices and in order; or that in order, and which rows are each expert's, one lane wide.
    """
    if not d.routed:
        return 0.0
    m = config.model
    head = 2 * d.tokens * max(m.head_size, _LANES)
    attention = (2 * d.heads + 2 * d.keys) * head if config.execution.remat == "full" else 0
    gradient, mask = 2 * d.routed * m.embed_dim, d.routed * m.num_experts / mesh["expert"] * _LANES
    arriving = 4 * d.chosen * m.embed_dim + (2 * gradient if mesh["expert"] > 1 else 0)
    return attention + experts_saved(config, d) + max(arriving, gradient + mask)


def _loss(config: Config, mesh: Mapping[str, int], d: PerDevice) -> float:
    """Working space of a chunk of the loss: logits, their exponents and gradient in float32; hidden
    states and their gradient.
    """
    rows = int(d.rows / d.plan.stages * config.data.seq_length)
    chunk = config.execution.loss_chunk or pick_loss_chunk(
        rows, config.model.vocab_size, mesh["tensor"]
    )
    return 3 * 4 * d.outer * chunk / mesh["tensor"] + (2 + 4) * d.outer * config.model.embed_dim
