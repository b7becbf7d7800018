"""Plans decoding of a config on a slice: memory and least time of prefill and of one step."""

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
from llm_jax.config.support import refuse
from llm_jax.decode.loop import Choosing, Prompts, Room, jit_steps
from llm_jax.decode.placement import cache_shardings, compute_params, compute_shardings, layout_of
from llm_jax.decode.settings import no_stops, shared_settings
from llm_jax.plan import roofline
from llm_jax.plan.chips import Chip
from llm_jax.plan.compiled import Traffic, compile_traced, memory_by_purpose
from llm_jax.plan.step import for_platform
from llm_jax.plan.topology import Slice, devices, stand_ins
from llm_jax.plan.trace import matmul_flops
from llm_jax.sharding import make_mesh, partition_spec
from llm_jax.training.flops import matmul_parameters
from llm_jax.types import ConfigError, Params


class Phase(NamedTuple):
    """One of the two programs.

    Attributes:
        memory: as in ``plan.step.Plan``.
        refused: as in ``plan.step.Plan``.
        flops: of all chips: "model", by formula, and "traced", of the program's products.
        traffic: the compiled collectives; empty in an analytic plan.
        seconds: as in ``plan.step.Plan``.
    """

    memory: dict[str, float]
    refused: str
    flops: dict[str, float]
    traffic: list[Traffic]
    seconds: roofline.Seconds


class DecodePlan(NamedTuple):
    """Prefill and one step of decoding.

    Attributes:
        slice: the topology.
        mesh: the size of every axis.
        parameters: how many the model has.
        batch: rows that are decoded together.
        context: tokens of a row that the cache has room for.
        prompt: tokens of a row that prefill reads.
        prefill: reads the prompts.
        step: one token of each row, with a full cache.
        compile_seconds: time to trace and compile both.
        analytic: nothing was compiled.
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
        """Share of a step in which parameters and cache are read once; 1 is the memory's roofline.

        The first number is of the step's best time, the second of the time with nothing overlapped.
        """
        memory = self.step.seconds["memory"]
        return memory / self.step.seconds.at_best, memory / self.step.seconds.at_worst


def decode_flops(m: ModelConfig, context: int) -> float:
    """Model FLOPs of one token whose queries see ``context`` keys, or fewer in windows.

    They are 2 for each matmul parameter and, for each key, 2·N·(H + H'), where H' is the width of
    values, or 2·N·(2C + R) over latents.
    """
    keys = sum(min(m.window(layer) or context, context) for layer in range(m.num_layers))
    widths = m.head_dim + m.value_dim
    if m.latent:
        widths = 2 * m.latent.kv_latent + m.latent.rope_dim
    return 2.0 * matmul_parameters(m) + 2.0 * m.attention.num_heads * widths * keys


def prefill_flops(m: ModelConfig, prompt: int) -> float:
    """Model FLOPs of a causal prompt: those of each token, with logits after the last one only."""
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
    """Traces and compiles the two programs that ``decode.Generator`` runs.

    Args:
        config: the config, with its mesh; its vocabulary must be known.
        target: the slice.
        batch: rows that are decoded together.
        context: tokens of a row that the cache has room for.
        prompt: tokens of a row that prefill reads.
        analytic: do not compile. The compiler exists for TPU only; elsewhere a plan is analytic.
        least_effort: compile faster, with a less exact memory figure, for tests.

    Returns:
        The plan, also of a program that does not fit (``Phase.refused``).

    Raises:
        ConfigError: the config cannot be decoded on the slice at all.
    """
    _check(config, prompt, context)
    began = time.perf_counter()
    config = for_platform(config, target)
    analytic = analytic or target.chip.platform != "tpu"
    mesh = make_mesh(config.mesh, stand_ins(target) if analytic else devices(target))
    programs = _trace(config, target.chip.platform, mesh, _Sizes(batch, context, prompt))
    held = {
        "parameters": roofline.bytes_per_device(programs.params),
        "cache": roofline.bytes_per_device(programs.cache),
    }
    # The input embedding is looked up, not read, unless it is the output projection too.
    looked_up = 0.0
    if not config.model.embedding.tied:
        looked_up = roofline.bytes_per_device(programs.params["embed"])
    read = sum(held.values()) - looked_up
    planner = _Planner(target, mesh, held, read, analytic, least_effort)
    prefill_total = batch * prefill_flops(config.model, prompt)
    step_total = batch * decode_flops(config.model, context)
    return DecodePlan(
        slice=target,
        mesh=dict(mesh.shape),
        parameters=sum(math.prod(a.shape) for a in jax.tree.leaves(programs.params)),
        batch=batch,
        context=context,
        prompt=prompt,
        prefill=planner.phase(programs.prefill, prefill_total, makes_cache=True),
        step=planner.phase(programs.step, step_total, makes_cache=False),
        compile_seconds=time.perf_counter() - began,
        analytic=analytic,
    )


def _check(config: Config, prompt: int, context: int) -> None:
    """Raises ConfigError for what cannot be decoded."""
    if not 1 <= prompt <= context:
        raise ConfigError(
            f"prompt is {prompt}; it must be at least 1 and at most the context of {context}"
        )
    refuse(config.model, "plan_decode", "plan --decode")


class _Sizes(NamedTuple):
    """Rows, tokens of a row that the cache has room for, and tokens of a row's prompt."""

    batch: int
    context: int
    prompt: int


class _Programs(NamedTuple):
    """The two traced programs, and the shapes and shardings of what they read."""

    params: Params
    cache: Any
    prefill: Any
    step: Any


def _trace(config: Config, platform: str, mesh: Mesh, sizes: _Sizes) -> _Programs:
    execution = models.resolve_execution(config.execution, config.model, platform)
    model = models.build(config.model, execution, platform)
    stored = jax.eval_shape(model.init, jax.random.key(0))
    layout = layout_of(execution.layers, mesh)
    params = jax.tree.map(
        _placed,
        jax.eval_shape(partial(compute_params, model, layout=layout), stored),
        compute_shardings(model, stored, mesh, layout),
    )
    steps = jit_steps(model)
    of_rows = partial(_rows, mesh)
    settings = shared_settings(DecodeConfig(), sizes.batch, config.model.vocab_size)
    settings = jax.tree.map(of_rows, settings)
    stops = jax.tree.map(of_rows, no_stops(sizes.batch, config.model.vocab_size))
    tokens: Any = of_rows(jax.ShapeDtypeStruct((sizes.batch, sizes.prompt), jnp.int32))
    lengths: Any = of_rows(jax.ShapeDtypeStruct((sizes.batch,), jnp.int32))
    with jax.set_mesh(mesh):
        prefill = steps.begin.trace(
            params,
            Prompts(tokens, lengths),
            settings,
            stops,
            room=Room(sizes.context),
            choosing=Choosing(),
        )
        state = prefill.out_info
        cache = jax.tree.map(_placed, state.cache, cache_shardings(state.cache, mesh))
        state = jax.tree.map(of_rows, state._replace(cache=None))._replace(cache=cache)
        step = steps.advance.trace(params, state, settings, stops, choosing=Choosing())
    return _Programs(params, cache, prefill, step)


class _Planner(NamedTuple):
    """What the plans of both programs have in common.

    Attributes:
        target: the slice.
        mesh: the mesh over it.
        held: bytes of a device in parameters and cache.
        read: bytes of a device that a program reads at least.
        analytic: do not compile.
        least_effort: compile faster.
    """

    target: Slice
    mesh: Mesh
    held: dict[str, float]
    read: float
    analytic: bool
    least_effort: bool

    def phase(self, traced: Any, model_flops: float, *, makes_cache: bool) -> Phase:
        """The plan of one program.

        Args:
            traced: the program.
            model_flops: of all chips, by formula.
            makes_cache: the program makes the cache, and does not get it as an argument.
        """
        chip = self.target.chip
        flops = matmul_flops(traced.jaxpr)
        if self.analytic:
            memory = {name: size * chip.devices for name, size in self.held.items()}
            refused = _too_big(memory, chip.hbm)
            traffic: list[Traffic] = []
        else:
            out = compile_traced(traced, self.mesh, least_effort=self.least_effort)
            memory = _memory(out.memory, self.held, makes_cache, chip) if out.memory else {}
            refused = out.refused
            traffic = out.traffic
        seconds = {
            "compute": flops / self.target.chips / (chip.tflops * 1e12),
            **roofline.link_seconds(chip, sum(t.bytes for t in traffic)),
            "memory": self.read * chip.devices / chip.hbm_rate,
        }
        return Phase(
            memory={} if refused else memory,
            refused=refused,
            flops={"model": model_flops, "traced": flops},
            traffic=traffic,
            seconds=roofline.Seconds(seconds),
        )


def _too_big(memory: dict[str, float], hbm: float) -> str:
    """Why parameters and cache do not fit a chip, or an empty string."""
    used = sum(memory.values())
    if used <= hbm:
        return ""
    return f"parameters and cache alone are {used / 2**30:.1f} GiB of each chip's {hbm / 2**30:.0f}"


def _memory(stats: Any, held: dict[str, float], makes_cache: bool, chip: Chip) -> dict[str, float]:
    """Bytes of a chip by purpose.

    Args:
        stats: CompiledMemoryStats of a device.
        held: bytes of a device in parameters and cache.
        makes_cache: the compiler counts the cache among the temporaries.
        chip: the chip.
    """
    if not makes_cache:
        return memory_by_purpose(stats, held, "tokens", chip)
    sizes = memory_by_purpose(stats, {"parameters": held["parameters"]}, "tokens", chip)
    cache = held["cache"] * chip.devices
    parameters = sizes.pop("parameters")
    temporaries = sizes["temporaries"] - cache
    return {"parameters": parameters, "cache": cache, **sizes, "temporaries": temporaries}


def _placed(a: Any, sharding: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding)


def _rows(mesh: Mesh, a: Any) -> jax.ShapeDtypeStruct:
    """The shape of an array [B] or [B, …] whose rows are split over the mesh."""
    axes = ("batch", *(None,) * (len(a.shape) - 1))
    return _placed(
        a, jax.NamedSharding(mesh, partition_spec(axes, a.shape, mesh.shape, "a row's setting"))
    )
