"""Plans decoding of a config on a slice: memory and least time of prefill and of one step."""

from __future__ import annotations

import math
import time
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh

from llm_jax import models
from llm_jax.config import CacheConfig, Config, DecodeConfig, ModelConfig
from llm_jax.config.support import refuse
from llm_jax.decode.loop import choose, jit_steps, read
from llm_jax.decode.placement import (
    cache_shardings,
    compute_params,
    compute_shardings,
    layout_of,
    place_cache,
)
from llm_jax.decode.programs import extend
from llm_jax.decode.settings import no_stops, shared_settings
from llm_jax.decode.state import Choosing, Prompts, Room, State, Stops
from llm_jax.ops.sampling import greedy
from llm_jax.ops.sampling.settings import Settings
from llm_jax.plan import roofline
from llm_jax.plan.chips import Chip
from llm_jax.plan.compiled import Traffic, compile_traced, memory_by_purpose
from llm_jax.plan.hbm import Moved
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
        least: bytes of a device's memory that the program reads at least: parameters and cache.
        moved: bytes that it reads and writes; None in an analytic plan, and of prefill.
    """

    memory: dict[str, float]
    refused: str
    flops: dict[str, float]
    traffic: list[Traffic]
    seconds: roofline.Seconds
    least: float = 0.0
    moved: Moved | None = None

    @property
    def moved_share(self) -> float:
        """How many times ``least`` is moved in a step, without branches that may not be taken; 0 if
        unknown.
        """
        return self.moved.known / self.least if self.moved else 0.0


class DraftPlan(NamedTuple):
    """Speculative decoding: a draft model beside the model.

    Attributes:
        parameters: how many the draft model has.
        tokens: drafted in each round.
        step: one step of the draft model, with both models and both caches in memory.
        verify: the model reads the drafted tokens and one more of each row.
    """

    parameters: int
    tokens: int
    step: Phase
    verify: Phase

    @property
    def seconds(self) -> float:
        """Time of a round at best."""
        return self.tokens * self.step.seconds.at_best + self.verify.seconds.at_best


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
        cache: the kind of cache.
        draft: of speculative decoding; None without a draft model.
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
    cache: CacheConfig = CacheConfig()
    draft: DraftPlan | None = None

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
    values, or 2·N·(2C + R) over latents. Without attention there are no keys.
    """
    if m.recurrent:
        return 2.0 * matmul_parameters(m)
    keys = sum(min(m.window(layer) or context, context) for layer in range(m.num_layers))
    widths = m.head_dim + m.value_dim
    if m.latent:
        widths = 2 * m.latent.kv_latent + m.latent.rope_dim
    return 2.0 * matmul_parameters(m) + 2.0 * m.attention.num_heads * widths * keys


def prefill_flops(m: ModelConfig, prompt: int) -> float:
    """Model FLOPs of a causal prompt: those of each token, with logits after the last one only."""
    seen = 0.0
    for layer in range(0 if m.recurrent else m.num_layers):
        window = min(m.window(layer) or prompt, prompt)
        seen += prompt * (window - window**2 / (2 * prompt))
    head = 2.0 * m.vocab_size * m.embed_dim
    return (
        prompt * (2.0 * matmul_parameters(m) - head)
        + head
        + 2.0 * m.attention.num_heads * (m.head_dim + m.value_dim) * seen
    )


class Draft(NamedTuple):
    """A draft model.

    Attributes:
        config: of the draft model; it is decoded on the mesh of the model.
        tokens: drafted in each round.
    """

    config: Config
    tokens: int


class Sizes(NamedTuple):
    """What is decoded.

    Attributes:
        batch: rows that are decoded together.
        context: tokens of a row that the cache has room for.
        prompt: tokens of a row that prefill reads.
    """

    batch: int
    context: int
    prompt: int


def plan_decode(
    config: Config,
    target: Slice,
    *,
    batch: int,
    context: int,
    prompt: int,
    cache: CacheConfig = CacheConfig(),  # noqa: B008 (frozen)
    draft: Draft | None = None,
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
        cache: the kind of cache.
        draft: a draft model, for speculative decoding.
        analytic: do not compile. The compiler exists for TPU only; elsewhere a plan is analytic.
        least_effort: compile faster, with a less exact memory figure, for tests.

    Returns:
        The plan, also of a program that does not fit (``Phase.refused``).

    Raises:
        ConfigError: the config cannot be decoded on the slice at all.
    """
    sizes = Sizes(batch, context, prompt)
    _check(config, sizes)
    began = time.perf_counter()
    config = for_platform(config, target)
    analytic = analytic or target.chip.platform != "tpu"
    mesh = make_mesh(config.mesh, stand_ins(target) if analytic else devices(target))
    platform = target.chip.platform
    verified = draft.tokens + 1 if draft else 0
    programs = _trace(config, platform, mesh, sizes, cache, verified)
    held = programs.held("")
    drafts = None
    if draft:
        _check_draft(config, draft, sizes)
        own = for_platform(draft.config, target)
        drafts = _trace(own, platform, mesh, sizes, cache)
        held = {**held, **drafts.held("draft ")}
    planner = _Planner(target, mesh, held, analytic, least_effort)
    step_total = batch * decode_flops(config.model, context)
    return DecodePlan(
        slice=target,
        mesh=dict(mesh.shape),
        parameters=programs.parameters,
        batch=batch,
        context=context,
        prompt=prompt,
        prefill=planner.prefill(programs, batch * prefill_flops(config.model, prompt)),
        step=planner.step(programs, programs.step, step_total, ""),
        compile_seconds=time.perf_counter() - began,
        analytic=analytic,
        cache=cache,
        draft=None if drafts is None else _plan_draft(planner, programs, drafts, draft, step_total),
    )


def _plan_draft(
    planner: _Planner, programs: _Programs, drafts: _Programs, draft: Draft | None, total: float
) -> DraftPlan:
    """The two programs of a round. total: FLOPs of a step of the model."""
    assert draft is not None
    context = drafts.sizes.context
    of_draft = drafts.sizes.batch * decode_flops(draft.config.model, context)
    return DraftPlan(
        parameters=drafts.parameters,
        tokens=draft.tokens,
        step=planner.step(drafts, drafts.step, of_draft, "draft "),
        verify=planner.step(programs, programs.verify, total * (draft.tokens + 1), ""),
    )


def _check(config: Config, sizes: Sizes) -> None:
    """Raises ConfigError for what cannot be decoded."""
    if not 1 <= sizes.prompt <= sizes.context:
        raise ConfigError(
            f"prompt is {sizes.prompt}; it must be at least 1 and at most the context of"
            f" {sizes.context}"
        )
    refuse(config.model, "plan_decode", "plan --decode")


def _check_draft(config: Config, draft: Draft, sizes: Sizes) -> None:
    """Raises ConfigError for a draft model that cannot draft for the model."""
    _check(draft.config, sizes)
    own = draft.config.model.vocab_size
    if own != config.model.vocab_size:
        raise ConfigError(
            f"the draft model has a vocabulary of {own}, and the model one of"
            f" {config.model.vocab_size}; both must have the same tokens"
        )
    if not 1 <= draft.tokens < sizes.context:
        raise ConfigError(
            f"{draft.tokens} tokens are drafted in each round (--draft-tokens); give 1 or more, and"
            f" fewer than the context of {sizes.context}"
        )


class _Programs(NamedTuple):
    """The traced programs, and the shapes and shardings of what they read.

    Attributes:
        params: as decoding has them.
        cache: of all rows.
        prefill: reads the prompts.
        step: one token of each row.
        verify: several tokens of each row; None without a draft model.
        sizes: of the cache and the prompts.
        looked_up: bytes of a device in an input embedding, which is looked up and not read.
    """

    params: Params
    cache: Any
    prefill: Any
    step: Any
    verify: Any
    sizes: Sizes
    looked_up: float

    @property
    def parameters(self) -> int:
        """How many there are."""
        return sum(math.prod(a.shape) for a in jax.tree.leaves(self.params))

    def held(self, whose: str) -> dict[str, float]:
        """Bytes of a device in parameters and cache."""
        return {
            f"{whose}parameters": roofline.bytes_per_device(self.params),
            f"{whose}cache": roofline.bytes_per_device(self.cache),
        }

    @property
    def read(self) -> float:
        """Bytes of a device that a step reads at least."""
        return sum(self.held("").values()) - self.looked_up


def _trace(
    config: Config,
    platform: str,
    mesh: Mesh,
    sizes: Sizes,
    kind: CacheConfig,
    verified: int = 0,
) -> _Programs:
    """The programs of a model. verified: tokens of a row in ``verify``; 0 is none."""
    execution = models.resolve_execution(config.execution, config.model, platform)
    model = models.build(config.model, execution, platform)
    # Room for the drafted tokens beyond the row, of which some are taken back.
    make = partial(model.init_cache, kind=kind, rollback=verified)
    model = model._replace(init_cache=make)
    stored = jax.eval_shape(model.init, jax.random.key(0))
    layout = layout_of(config.execution.layers, mesh)
    params = jax.tree.map(
        _placed,
        jax.eval_shape(partial(compute_params, model, layout=layout), stored),
        compute_shardings(model, stored, mesh, layout),
    )
    steps = jit_steps(model)
    of_rows = partial(_rows, mesh, sizes.batch)
    settings = shared_settings(DecodeConfig(), sizes.batch, config.model.vocab_size)
    settings = jax.tree.map(of_rows, settings)
    stops = no_stops(sizes.batch, config.model.vocab_size)
    stops = stops._replace(table=jax.tree.map(of_rows, stops.table))
    tokens: Any = of_rows(jax.ShapeDtypeStruct((sizes.batch, sizes.prompt), jnp.int32))
    lengths: Any = of_rows(jax.ShapeDtypeStruct((sizes.batch,), jnp.int32))
    with jax.set_mesh(mesh):
        prefill = steps.begin.trace(
            params, Prompts(tokens, lengths), room=Room(sizes.context), choosing=Choosing()
        )
        state = prefill.out_info
        cache = jax.tree.map(_placed, state.cache, cache_shardings(state.cache, mesh))
        state = jax.tree.map(of_rows, state._replace(cache=None))._replace(cache=cache)
        step = jax.jit(partial(_advance, model), donate_argnames=("state",)).trace(
            params, state, settings, stops
        )
        verify = None
        if verified:
            drafted = of_rows(jax.ShapeDtypeStruct((sizes.batch, verified), jnp.int32))
            run = jax.jit(partial(_verify, model), donate_argnames=("cache",))
            verify = run.trace(params, drafted, lengths, cache=cache)
    # The input embedding is looked up, not read, unless it is the output projection too.
    tied = config.model.embedding.tied
    looked_up = 0.0 if tied else roofline.bytes_per_device(params["embed"])
    return _Programs(params, cache, prefill, step, verify, sizes, looked_up)


def _advance(
    model: models.Model, params: Params, state: State, settings: Settings, stops: Stops
) -> State:
    """One step of ``loop.write``."""
    state = choose(state, settings, stops, choosing=Choosing())
    return read(model, params, state, guided=False)


def _verify(
    model: models.Model, params: Params, tokens: Array, counts: Array, cache: Any
) -> tuple[Array, Any]:
    """The most likely token after each drafted one, and the cache with them."""
    hidden, cache = extend(model, params, tokens, counts, cache)
    return greedy(model.logits(params, hidden)), place_cache(cache)


class _Planner(NamedTuple):
    """What the plans of all programs have in common.

    Attributes:
        target: the slice.
        mesh: the mesh over it.
        held: bytes of a device in parameters and caches.
        analytic: do not compile.
        least_effort: compile faster.
    """

    target: Slice
    mesh: Mesh
    held: dict[str, float]
    analytic: bool
    least_effort: bool

    def prefill(self, programs: _Programs, model_flops: float) -> Phase:
        """The plan of ``programs.prefill``, which makes the cache and does not get it."""
        return self._phase(programs.prefill, programs.read, model_flops, "", makes_cache=True)

    def step(self, programs: _Programs, traced: Any, model_flops: float, whose: str) -> Phase:
        """The plan of a program that goes on with a cache.

        Args:
            programs: of the model that it is of.
            traced: the program.
            model_flops: of all chips, by formula.
            whose: "draft " for one of the draft model, or "".
        """
        return self._phase(traced, programs.read, model_flops, whose, makes_cache=False)

    def _phase(
        self, traced: Any, read: float, model_flops: float, whose: str, *, makes_cache: bool
    ) -> Phase:
        chip = self.target.chip
        flops = matmul_flops(traced.jaxpr)
        if self.analytic:
            memory = {name: size * chip.devices for name, size in self.held.items()}
            refused = _too_big(memory, chip.hbm)
            traffic: list[Traffic] = []
            moved = None
        else:
            out = compile_traced(
                traced, self.mesh, least_effort=self.least_effort, count_moved=not makes_cache
            )
            memory = self._memory(out.memory, whose, makes_cache) if out.memory else {}
            refused = out.refused or _too_big(memory, chip.hbm)
            traffic = out.traffic
            moved = out.moved
        seconds = {
            "compute": flops / self.target.chips / (chip.tflops * 1e12),
            **roofline.link_seconds(chip, sum(t.bytes for t in traffic)),
            "memory": read * chip.devices / chip.hbm_rate,
        }
        return Phase(
            memory={} if refused else memory,
            refused=refused,
            flops={"model": model_flops, "traced": flops},
            traffic=traffic,
            seconds=roofline.Seconds(seconds),
            least=read,
            moved=moved,
        )

    def _memory(self, stats: Any, whose: str, makes_cache: bool) -> dict[str, float]:
        """Bytes of a chip by purpose, with what another model holds beside the program."""
        chip = self.target.chip
        own = {name: self.held[f"{whose}{name}"] for name in ("parameters", "cache")}
        sizes = _memory(stats, own, makes_cache, chip)
        rest = {name: sizes.pop(name) for name in list(sizes) if name not in own}
        held = {name: size * chip.devices for name, size in self.held.items()}
        return {**held, **rest}


def _too_big(memory: dict[str, float], hbm: float) -> str:
    """Why what is held does not fit a chip, or an empty string."""
    held = {name: size for name, size in memory.items() if "parameters" in name or "cache" in name}
    used = sum(held.values())
    if used <= hbm:
        return ""
    what = " and ".join(["parameters", "cache"] if len(held) == 2 else ["both models", "caches"])
    return f"{what} alone are {used / 2**30:.1f} GiB of each chip's {hbm / 2**30:.0f}"


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


def _rows(mesh: Mesh, rows: int, a: Any) -> jax.ShapeDtypeStruct:
    """The shape of an array whose rows [B] or [B, …] are split over the mesh; of any other, which
    all devices have, its own.
    """
    first = "batch" if a.shape and a.shape[0] == rows else None
    axes = (first, *(None,) * (len(a.shape) - 1))[: len(a.shape)]
    return _placed(
        a, jax.NamedSharding(mesh, partition_spec(axes, a.shape, mesh.shape, "a row's setting"))
    )
