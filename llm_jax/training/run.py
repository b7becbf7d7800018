"""One training run from its config: checks, mesh, model, data, checkpoints, loop. What ``llm-jax
train`` starts.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import optax
from jax.sharding import Mesh

from llm_jax import models, sharding
from llm_jax.checkpoints.checkpoint import Checkpoints
from llm_jax.checkpoints.folder_lock import FolderLock
from llm_jax.checkpoints.manifest import shortened
from llm_jax.config import Config
from llm_jax.config.overrides import override, provenance
from llm_jax.config.saved import to_json
from llm_jax.config.validate import validate
from llm_jax.files import QUICKSTART, RUN, check_folder, write_atomic
from llm_jax.goodput import Goodput
from llm_jax.models import Model
from llm_jax.multihost.global_batch import Feed
from llm_jax.multihost.signals import Stopped
from llm_jax.multihost.watchdog import Watchdog
from llm_jax.objectives import Loss, make_transform, objective_of
from llm_jax.params.select import select, split
from llm_jax.progress import note
from llm_jax.training.compile_cache import cache_counts
from llm_jax.training.compiler_flags import compiler_options
from llm_jax.training.environment import environment
from llm_jax.training.fingerprint import program_facts, start_facts
from llm_jax.training.flops import device_peak, flops_of, idle_parameters
from llm_jax.training.loop import Loop
from llm_jax.training.metric_sums import MetricSums
from llm_jax.training.metrics import MetricsWriter, SilentWriter
from llm_jax.training.optimizer import make_optimizer
from llm_jax.training.profile import Profile
from llm_jax.training.spikes import skip_spikes
from llm_jax.training.state import (
    TrainState,
    create_state,
    fill_slots,
    from_saved,
    make_init,
    state_shardings,
    to_saved,
)
from llm_jax.training.step import (
    jit_train_step,
    make_eval_step,
    make_train_step,
    pick_loss_chunk,
)
from llm_jax.types import Batch, ConfigError, Params

if TYPE_CHECKING:
    from llm_jax.data.loading.loader import Loader


class Parts(NamedTuple):
    """Everything a step needs, built once from a resolved config."""

    config: Config
    mesh: Mesh
    model: Model
    optimizer: optax.GradientTransformation
    loss: Loss
    abstract: TrainState
    """ShapeDtypeStructs with shardings: what a checkpoint must contain."""


def build(config: Config, devices: Sequence[jax.Device] | None = None) -> Parts:
    """Model, optimizer, loss and mesh of a config whose vocabulary size is known, for ``devices``
    (default: all there are).

    Raises ConfigError for what cannot run.
    """
    validate(config)
    platform = jax.default_backend() if devices is None else devices[0].platform
    mesh = sharding.make_mesh(config.mesh, devices)
    execution = models.resolve_execution(
        config.execution, config.model, platform, mesh.shape["context"]
    )
    piece = config.data.batch_size // config.train.accumulation
    sharding.batch_sharding(mesh, piece)
    models.schedule(config.model, execution, mesh.shape, piece)
    if execution.remat.startswith("offload:"):
        sharding.check_host_memory(mesh)
    model = models.build(config.model, execution, platform, mesh.shape["context"])
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    patterns = config.train.trainable
    trainable, _ = split(shapes, select(patterns, model.specs, "train.trainable"))
    optimizer = make_optimizer(
        config.optimizer, config.train.steps, trainable, model.specs, config.model.balance_rate
    )
    spike = config.train.spike
    if spike is not None:
        optimizer = skip_spikes(optimizer, spike.window, spike.deviations)
    rows = piece // sharding.batch_ways(mesh) // mesh.shape["pipeline"]
    chunk = execution.loss_chunk or pick_loss_chunk(
        rows * config.data.seq_length, config.model.vocab_size, mesh.shape["tensor"]
    )
    loss = objective_of(config.data).make_loss(model, config, chunk)
    state = jax.eval_shape(make_init(model, optimizer, patterns), jax.random.key(0))
    where = state_shardings(model, optimizer, mesh, patterns)
    abstract = jax.tree.map(
        lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), state, where
    )
    return Parts(config, mesh, model, optimizer, loss, abstract)


def step_of(parts: Parts) -> Callable:
    """The train step of a run, compiled at its first call (inside ``jax.set_mesh``)."""
    return jit_train_step(
        make_train_step(parts.loss, parts.optimizer, parts.config, parts.model.specs),
        parts.model,
        parts.optimizer,
        parts.mesh,
        parts.config.train.trainable,
    )


def first_state(parts: Parts) -> TrainState:
    """The state of a run at step 0."""
    train = parts.config.train
    return create_state(parts.model, parts.optimizer, parts.mesh, train.seed, train.trainable)


def run_facts(parts: Parts, loader: Loader | None = None) -> dict[str, Any]:
    """What follows from a config: parameters, tokens per step, FLOPs per token, bytes of state per
    device; with ``loader`` epochs too.
    """
    c, flops = parts.config, flops_of(parts.config)
    m, tokens = c.model, c.data.batch_size * c.data.seq_length
    held = parts.abstract
    parameters = _count(held.params)

    def shard_bytes(a: jax.ShapeDtypeStruct) -> int:
        return math.prod(a.sharding.shard_shape(a.shape)) * a.dtype.itemsize

    out: dict[str, Any] = {
        "parameters": parameters,
        **({"parameters_trained": _count(held.trainable)} if held.frozen else {}),
        **({"parameters_active_per_token": parameters - idle_parameters(m)} if m.experts else {}),
        "mesh": dict(parts.mesh.shape),
        "global_tokens_per_step": tokens,
        **(
            {"global_encoder_tokens_per_step": c.data.batch_size * c.data.encoder_length}
            if m.encoder
            else {}
        ),
        "total_tokens": tokens * c.train.steps,
        "training_flops_per_token_causal": flops.causal,
        "training_flops_per_token_full": flops.full,
        "state_bytes_per_device": sum(shard_bytes(a) for a in jax.tree.leaves(parts.abstract)),
    }
    if (stages := parts.mesh.shape["pipeline"]) > 1:
        schedule = models.schedule(
            c.model, c.execution, parts.mesh.shape, c.data.batch_size // c.train.accumulation
        )
        out |= {
            "pipeline_stages": stages,
            "pipeline_microbatches": schedule.microbatches,
            "pipeline_bubble_share": schedule.bubble,
        }
    if loader:
        rows = loader.stored_rows
        out |= {
            "tokens_per_epoch": loader.epoch_tokens,
            "rows_per_epoch": rows,
            "epochs": c.data.batch_size * c.train.steps / rows,
        }
    return out


def _count(params: Params) -> int:
    return sum(math.prod(a.shape) for a in jax.tree.leaves(params))


def run_facts_text(values: dict[str, Any]) -> str:
    """``run_facts`` as aligned lines."""

    def show(v: Any) -> str:
        if isinstance(v, float) and v < 1e4:
            return f"{v:,.2f}"
        return f"{v:,.0f}" if isinstance(v, int | float) else str(v)

    return "\n".join(
        f"  {name.replace('_', ' '):34} {show(value)}" for name, value in values.items()
    )


def run_folder(config: Config) -> Path:
    """Where a run leaves its files."""
    return Path(config.train.out or f"runs/{config.name}")


def train(
    config: Config,
    ledger: Goodput | None = None,
    watch: Watchdog | None = None,
    lock: FolderLock | None = None,
) -> Path:
    """Runs a config to its last step, going on from its newest intact checkpoint; returns the run's
    folder.

    Nothing in the folder changes before this run is accepted there.

    Args:
        config: the run.
        ledger: where the wall time is counted.
        watch: over the other hosts of the run, where there are some (``hosts.join``).
        lock: of the run's folder, where the caller holds it already.

    Raises:
        ConfigError, DataError, CheckpointError, NonFiniteError, SpikeError, or Stopped after SIGINT
        or SIGTERM.
    """
    # The data floor needs grain and tensorflow-datasets; whoever only steps or benchmarks does
    # without them.
    from llm_jax.data.loading.loader import Loader
    from llm_jax.tokenizers.open_tokenizer import open_tokenizer

    ledger = ledger or Goodput()
    if not config.data.path:
        raise ConfigError(
            "data.path is empty; make shards with `llm-jax data prepare` and set --data.path=FOLDER"
        )
    validate(config)
    folder = run_folder(config)
    check_folder(folder, resumes=(RUN, QUICKSTART), option="train.out")
    tokenizer = open_tokenizer(Path(config.data.path[0]) / "tokenizer")
    if watch:
        watch.barrier_check("start", start_facts(config, tokenizer.fingerprint))
    config = with_vocabulary(config, tokenizer.vocab_size)
    d, parts = config.data, build(config)
    feed = Feed(parts.mesh, d.batch_size, d.seq_length)
    loader = Loader(
        d.path,
        seq_length=d.seq_length,
        batch_size=d.batch_size,
        seed=d.seed,
        transform=make_transform(d, config.model.start_token, tokenizer),
        weights=d.weights or None,
        prefetch=d.prefetch,
        tokenizer_fingerprint=tokenizer.fingerprint,
        rows=feed.rows,
    )
    note(f"{config.name}: {jax.device_count()} {jax.devices()[0].device_kind} device(s)")
    note(run_facts_text(run_facts(parts, loader)))
    with contextlib.ExitStack() as held:
        if lock is None and jax.process_index() == 0:
            lock = held.enter_context(FolderLock(folder))
        checkpoints = Checkpoints(
            folder / "checkpoints", config.train.keep, tokenizer.fingerprint, loader.fingerprints
        )
        _train(parts, feed, loader, checkpoints, ledger, watch, lock)
    return folder


def _train(
    parts: Parts,
    feed: Feed,
    loader: Loader,
    checkpoints: Checkpoints,
    ledger: Goodput,
    watch: Watchdog | None,
    lock: FolderLock | None,
) -> None:
    """The part of ``train`` that has the folder."""
    config = parts.config
    folder = run_folder(config)

    def newest() -> TrainState:
        saved = checkpoints.restore_newest(to_saved(parts.abstract), config, note)
        if saved is None:
            return first_state(parts)
        where = jax.tree.map(lambda a: a.sharding, parts.abstract.opt_state)
        return fill_slots(from_saved(saved, parts.abstract), parts.optimizer, where)

    state = newest()
    first = int(state.step)
    if first >= config.train.steps:
        note(f"already at step {first} of {config.train.steps}: nothing to train")
        return
    if first:
        note(f"going on from step {first}")
    loop = _make_loop(parts, feed, loader, checkpoints, ledger)
    loop.newest, loop.profile, loop.lock = (
        newest,
        Profile(folder / "profile", config.train.profile_steps),
        lock,
    )
    if watch:
        loop.watch = watch
        watch.barrier_check(
            "program", program_facts(loop.step, parts.abstract, parts.mesh, config, first)
        )
    if jax.process_index() == 0:
        write_settings(config)
        loop.writer = MetricsWriter(folder, first)
    stated = {
        "peak_flops": loop.peak.flops,
        "peak_source": loop.peak.source,
        "environment": environment(),
    }
    loop.writer.write("setup", first, {**run_facts(parts, loader), **stated})
    _note_changed_data(checkpoints, first, loop.writer)

    def write_ledger() -> None:
        loop.writer.write("ledger", max(loop.done, first), {**ledger.summary(), **cache_counts()})

    _run(loop, state, (write_ledger, loop.writer.close, checkpoints.close, loader.close))


def _note_changed_data(
    checkpoints: Checkpoints, step: int, writer: MetricsWriter | SilentWriter
) -> None:
    """Says so, and writes it down, where the run goes on from ``step`` on other shards
    than before.
    """
    before = checkpoints.manifest(step).get("data", checkpoints.data) if step else checkpoints.data
    if before != checkpoints.data:
        note(
            f"after step {step} the run reads other shards: {shortened(before)} before,"
            f" {shortened(checkpoints.data)} now"
        )
        writer.write("data_changed", step, {"before": before, "now": checkpoints.data})


def _make_loop(
    parts: Parts, feed: Feed, loader: Loader, checkpoints: Checkpoints, ledger: Goodput
) -> Loop:
    from llm_jax.data.loading.loader import evaluation_batches

    config, d = parts.config, parts.config.data

    def validation() -> Iterable[Batch]:
        for path in d.path:
            yield from evaluation_batches(
                path,
                seq_length=d.seq_length,
                batch_size=d.batch_size,
                transform=loader.transform,
                limit=config.train.eval_batches or None,
                rows=feed.rows,
            )

    execution = models.resolve_execution(config.execution, config.model)
    return Loop(
        config=config,
        step=step_of(parts),
        feed=feed,
        batches=loader.iterate,
        evaluate=make_evaluate(parts, feed, validation) if _has_validation(d.path) else None,
        checkpoints=checkpoints,
        writer=SilentWriter(),
        ledger=ledger,
        flops=flops_of(config),
        peak=device_peak(config.train.peak_tflops, execution.compute_dtype),
    )


def _run(loop: Loop, state: TrainState, endings: tuple[Callable[[], None], ...]) -> None:
    """Runs the loop and then each of ``endings``, whatever ends it."""
    try:
        loop.run(state)
    except BaseException as error:
        # Closing waits for other hosts, which may be what is wrong; after a stop all close.
        if loop.watch and not isinstance(error, Stopped):
            if loop.lock:
                # Saves may still be written until the process ends, which then frees the folder.
                loop.lock.keep()
            raise
        # What goes wrong while closing must not hide what ended the run.
        for end in endings:
            with contextlib.suppress(Exception):
                end()
        raise
    for end in endings:
        end()


def with_vocabulary(config: Config, vocab_size: int) -> Config:
    """``config`` with the tokenizer's vocabulary size; ConfigError if it names a smaller one."""
    if config.model.vocab_size == 0:
        place = provenance(config).get("data.path", "the tokenizer")
        return override(
            config, {"model.vocab_size": vocab_size}, f"the tokenizer of data.path ({place})"
        )
    if config.model.vocab_size < vocab_size:
        raise ConfigError(
            f"model.vocab_size is {config.model.vocab_size} but the tokenizer of data.path has"
            f" {vocab_size} tokens; use 0 (take it from the tokenizer) or at least {vocab_size}"
        )
    return config


def write_settings(config: Config) -> None:
    """Writes ``config.json`` and ``tokenizer/`` into the run's folder. ConfigError or DataError
    when they cannot be written.
    """
    from llm_jax.tokenizers.open_tokenizer import tokenizer_files

    folder = run_folder(config)
    try:
        (folder / "tokenizer").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"train.out {str(folder)!r} cannot be written: {error.strerror}; choose another folder"
        ) from error
    for name, data in tokenizer_files(Path(config.data.path[0]) / "tokenizer").items():
        write_atomic(folder / "tokenizer" / name, data)
    write_atomic(folder / "config.json", json.dumps(to_json(config), indent=1).encode() + b"\n")


def _has_validation(paths: tuple[str, ...]) -> bool:
    from llm_jax.data.shards.store import read_manifest

    return all(read_manifest(Path(p))["shards"]["validation"] for p in paths)


def make_evaluate(
    parts: Parts, feed: Feed, batches: Callable[[], Iterable[Batch]]
) -> Callable[[Params], dict[str, float | None]]:
    """params -> the objective's metrics over ``batches``, each divided once by its own weight.
    Perplexity is None where it is too large for a float.
    """
    objective = objective_of(parts.config.data)
    names = MetricSums(objective).names
    step = jax.jit(make_eval_step(parts.loss, names), compiler_options=compiler_options(parts.mesh))

    def evaluate(params: Params) -> dict[str, float | None]:
        sums = MetricSums(objective)
        with jax.set_mesh(parts.mesh):
            for batch in batches():
                sums.add(jax.device_get(step(params, feed.put(batch))))
        return sums.values()

    return evaluate
