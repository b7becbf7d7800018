"""Decoding of a config on a slice: prefill and one step for a token, their memory, and the time
that no machine can beat.
"""

from __future__ import annotations

import math
import time
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from llm_jax import models
from llm_jax.config import Config, DecodeConfig, ModelConfig
from llm_jax.config.sections import kind_of
from llm_jax.decode.generate import jit_steps, sampling
from llm_jax.decode.placement import cache_shardings, compute_params, compute_shardings
from llm_jax.plan import roofline
from llm_jax.plan.compiled import Traffic, compile_traced, memory_by_purpose
from llm_jax.plan.step import for_platform
from llm_jax.plan.topology import Slice, devices, stand_ins
from llm_jax.plan.trace import matmul_flops
from llm_jax.sharding import make_mesh, partition_spec
from llm_jax.training.flops import matmul_parameters
from llm_jax.types import ConfigError, Params


class Phase(NamedTuple):
    """One of the two programs. memory, refused, seconds: as in ``plan.step.Plan`` · flops: model
    and traced, of all chips.
    """

    memory: dict[str, float]
    refused: str
    flops: dict[str, float]
    traffic: list[Traffic]
    seconds: roofline.Seconds


class DecodePlan(NamedTuple):
    """``batch`` rows with a cache of ``context`` tokens: prefill of ``prompt`` tokens a row, and
    the step at a full cache.
    """

    slice: Slice
    mesh: dict[str, int]
    parameters: int
    batch: int
    context: int
    prompt: int
    prefill: Phase
    step: Phase
    compile_seconds: float
    analytic: bool

    @property
    def tokens_per_second_per_chip(self) -> float:
        return self.batch / self.step.seconds.at_best / self.slice.chips

    @property
    def hbm_share(self) -> tuple[float, float]:
        """Of the step's best time and of that with nothing overlapped, the part in which parameters
        and cache are read once: 1 is decoding at the memory's roofline.
        """
        memory = self.step.seconds["memory"]
        return memory / self.step.seconds.at_best, memory / self.step.seconds.at_worst


def decode_flops(m: ModelConfig, context: int) -> float:
    """Model FLOPs of one token whose queries see ``context`` keys (fewer in windows): 2 per matmul
    parameter, and per key 2·N·(H + H'), H' the width of values, or over latents 2·N·(2C + R).
    """
    keys = sum(min(m.window(layer) or context, context) for layer in range(m.num_layers))
    widths = m.head_dim + m.value_dim
    if m.latent:
        widths = 2 * m.latent.kv_latent + m.latent.rope_dim
    return 2.0 * matmul_parameters(m) + 2.0 * m.attention.num_heads * widths * keys


def prefill_flops(m: ModelConfig, prompt: int) -> float:
    """Model FLOPs of a prompt read causally: as ``decode_flops`` of each token, with logits after
    the last alone.
    """
    seen = 0.0
    for layer in range(m.num_layers):
        window = min(m.window(layer) or prompt, prompt)
        seen += prompt * (window - window**2 / (2 * prompt))
    head = 2.0 * m.vocab_size * m.embed_dim
    return (
        prompt * (2.0 * matmul_parameters(m) - head)
        + head
        + 2.0 * m.attention.num_heads * (m.head_dim + m.value_dim) * seen
    )


def plan_decode(
    config: Config,
    target: Slice,
    *,
    batch: int,
    context: int,
    prompt: int,
    analytic: bool = False,
    least_effort: bool = False,
) -> DecodePlan:
    """Traces and compiles the two programs that ``decode.Generator`` runs on the config's mesh over
    ``target``.

    Raises ConfigError for what cannot run there at all. What does not fit is no error: see
    ``Phase.refused``.
    """
    if not 1 <= prompt <= context:
        raise ConfigError(
            f"prompt is {prompt}; it must be at least 1 and at most the context of {context}"
        )
    if config.model.encoder or not config.model.causal:
        raise ConfigError(
            f"model.encoder is {kind_of(config.model.encoder)!r} and model.causal"
            f" {config.model.causal}: --decode plans decoders alone; leave it out to plan training"
        )
    config = for_platform(config, target)
    analytic, platform = analytic or target.chip.platform != "tpu", target.chip.platform
    mesh = make_mesh(config.mesh, stand_ins(target) if analytic else devices(target))  # type: ignore[arg-type]
    execution = models.resolve_execution(config.execution, config.model, platform)
    model, began = models.build(config.model, execution, platform), time.perf_counter()
    stored = jax.eval_shape(model.init, jax.random.key(0))
    params = jax.tree.map(
        _placed,
        jax.eval_shape(partial(compute_params, model), stored),
        compute_shardings(model, stored, mesh),
    )
    rows, steps = partial(_rows, mesh), jit_steps(model)
    settings = jax.tree.map(rows, sampling(DecodeConfig(), batch))

    def int_rows(*shape):
        return rows(jax.ShapeDtypeStruct(shape, jnp.int32))

    with jax.set_mesh(mesh):
        first = steps.first.trace(
            params,
            int_rows(batch, prompt),
            int_rows(batch),
            settings,
            cache_length=context,
            order="hf",
        )
        cache = first.out_info[1]
        cache = jax.tree.map(_placed, cache, cache_shardings(cache, mesh))
        phase = partial(_phase, target, mesh, config.model, params, cache, analytic, least_effort)
        following = steps.next.trace(params, int_rows(batch), cache=cache, s=settings, order="hf")
        return DecodePlan(
            slice=target,
            mesh=dict(mesh.shape),
            parameters=sum(math.prod(a.shape) for a in jax.tree.leaves(params)),
            batch=batch,
            context=context,
            prompt=prompt,
            prefill=phase(first, batch * prefill_flops(config.model, prompt), made=True),
            step=phase(following, batch * decode_flops(config.model, context), made=False),
            compile_seconds=time.perf_counter() - began,
            analytic=analytic,
        )


def _phase(
    target: Slice,
    mesh: Mesh,
    m: ModelConfig,
    params: Params,
    cache: Any,
    analytic: bool,
    least_effort: bool,
    traced: Any,
    model_flops: float,
    *,
    made: bool,
) -> Phase:
    """made: the program makes its cache, and does not get it as an argument."""
    chip, flops = target.chip, matmul_flops(traced.jaxpr)
    held = {
        "parameters": roofline.bytes_per_device(params),
        "cache": roofline.bytes_per_device(cache),
    }
    out = None if analytic else compile_traced(traced, mesh, least_effort=least_effort)
    if out is None:
        memory, refused, traffic = (
            {name: size * chip.devices for name, size in held.items()},
            "",
            [],
        )
        if sum(memory.values()) > chip.hbm:
            refused = (
                f"parameters and cache alone are {sum(memory.values()) / 2**30:.1f} GiB of each"
                f" chip's {chip.hbm / 2**30:.0f}"
            )
    else:
        refused, traffic = out.refused, out.traffic
        memory = _memory(out.memory, held, made, chip) if out.memory else {}
    # The input embedding is looked up, not read, unless it is the output projection too.
    read = sum(held.values()) - (
        0 if m.embedding.tied else roofline.bytes_per_device(params["embed"])
    )
    seconds = roofline.Seconds(
        {
            "compute": flops / target.chips / (chip.tflops * 1e12),
            **roofline.link_seconds(chip, sum(t.bytes for t in traffic)),
            "memory": read * chip.devices / chip.hbm_rate,
        }
    )
    return Phase(
        {} if refused else memory,
        refused,
        {"model": model_flops, "traced": flops},
        traffic,
        seconds,
    )


def _memory(stats: Any, held: dict[str, float], made: bool, chip: Any) -> dict[str, float]:
    if not made:
        return memory_by_purpose(stats, held, "tokens", chip)
    sizes = memory_by_purpose(stats, {"parameters": held["parameters"]}, "tokens", chip)
    cache = held["cache"] * chip.devices
    return {
        "parameters": sizes.pop("parameters"),
        "cache": cache,
        **sizes,
        "temporaries": sizes["temporaries"] - cache,
    }


def _placed(a: Any, sharding: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding)


def _rows(mesh: Mesh, a: Any) -> jax.ShapeDtypeStruct:
    axes = ("batch", None)[: len(a.shape)]
    return _placed(
        a, jax.NamedSharding(mesh, partition_spec(axes, a.shape, mesh.shape, "a row's setting"))
    )
