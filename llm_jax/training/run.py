"""One training run from its config: checks, data, checkpoints and the loop. ``llm-jax train`` and
``llm_jax.train`` start it.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import jax

from llm_jax import models
from llm_jax.checkpoints.checkpoint import Checkpoints
from llm_jax.checkpoints.folder_lock import FolderLock
from llm_jax.checkpoints.manifest import shortened
from llm_jax.config import Config
from llm_jax.config.validate import validate
from llm_jax.files import QUICKSTART, RUN, check_folder
from llm_jax.goodput import Goodput
from llm_jax.multihost.global_batch import Feed
from llm_jax.multihost.signals import Stopped
from llm_jax.multihost.watchdog import Watchdog
from llm_jax.objectives import make_transform
from llm_jax.progress import note
from llm_jax.storage.paths import path_of
from llm_jax.training.build import Parts, build, first_state, step_of, with_vocabulary
from llm_jax.training.compile_cache import cache_counts
from llm_jax.training.environment import environment
from llm_jax.training.evaluate import make_validation
from llm_jax.training.fingerprint import program_facts, start_facts
from llm_jax.training.flops import device_peak, flops_of
from llm_jax.training.loop import Loop
from llm_jax.training.metrics import MetricsWriter, SilentWriter
from llm_jax.training.profile import Profile
from llm_jax.training.run_folder import run_folder, write_settings
from llm_jax.training.start import started
from llm_jax.training.state import TrainState, fill_slots, from_saved, to_saved
from llm_jax.training.summary import format_summary, run_summary
from llm_jax.types import ConfigError

if TYPE_CHECKING:
    from llm_jax.data.loading.loader import Loader
    from llm_jax.tokenizers.tokenizer import Tokenizer


class _Session(NamedTuple):
    """What one process of a run has open.

    Attributes:
        parts: model, optimizer, loss and mesh.
        feed: places batches on the devices.
        loader: of the training data.
        checkpoints: in the run's folder.
        ledger: where the wall time is counted.
        watch: over the other hosts, where there are some.
        lock: of the run's folder, in the process that writes there.
    """

    parts: Parts
    feed: Feed
    loader: Loader
    checkpoints: Checkpoints
    ledger: Goodput
    watch: Watchdog | None
    lock: FolderLock | None


def train(
    config: Config,
    ledger: Goodput | None = None,
    watch: Watchdog | None = None,
    lock: FolderLock | None = None,
) -> Path:
    """Runs a config to its last step, from its newest intact checkpoint if there is one.

    Nothing in the folder changes before the run is accepted there.

    Args:
        config: the run.
        ledger: where the wall time is counted.
        watch: over the other hosts of the run, where there are some (``multihost.join``).
        lock: of the run's folder, where the caller holds it already.

    Returns:
        The run's folder.

    Raises:
        ConfigError: settings that cannot run, or a folder that cannot be written.
        DataError: shards or a tokenizer that cannot be used.
        CheckpointError: checkpoints of the folder that cannot be used.
        NonFiniteError: the loss became NaN or infinite.
        SpikeError: the loss rose beyond what ``train.spike`` allows.
        Stopped: after SIGINT or SIGTERM.
    """
    folder = run_folder(config)
    tokenizer = _check_start(config, watch)
    config = with_vocabulary(config, tokenizer.vocab_size)
    parts = build(config)
    feed = Feed(parts.mesh, config.data.batch_size, config.data.seq_length)
    loader = _open_loader(config, tokenizer, feed)
    note(f"{config.name}: {jax.device_count()} {jax.devices()[0].device_kind} device(s)")
    note(format_summary(run_summary(parts, loader)))
    with contextlib.ExitStack() as held:
        if lock is None and jax.process_index() == 0:
            lock = held.enter_context(FolderLock(folder))
        checkpoints = Checkpoints(
            folder / "checkpoints", config.train.keep, tokenizer.fingerprint, loader.fingerprints
        )
        if jax.process_index() == 0:
            checkpoints.delete_unfinished()
        _train(_Session(parts, feed, loader, checkpoints, ledger or Goodput(), watch, lock))
    return folder


def _check_start(config: Config, watch: Watchdog | None) -> Tokenizer:
    """The tokenizer of the data, after checking the config, the folder and the other hosts."""
    # Imported here: it needs packages that a machine without data may lack.
    from llm_jax.tokenizers.open_tokenizer import open_tokenizer

    if not config.data.path:
        raise ConfigError(
            "data.path is empty; make shards with `llm-jax data prepare` and set --data.path=FOLDER"
        )
    validate(config)
    check_folder(run_folder(config), resumes=(RUN, QUICKSTART), option="train.out")
    tokenizer = open_tokenizer(path_of(config.data.path[0]) / "tokenizer")
    if watch:
        watch.barrier_check("start", start_facts(config, tokenizer.fingerprint))
    return tokenizer


def _open_loader(config: Config, tokenizer: Tokenizer, feed: Feed) -> Loader:
    from llm_jax.data.loading.loader import Loader

    data = config.data
    return Loader(
        data.path,
        seq_length=data.seq_length,
        batch_size=data.batch_size,
        seed=data.seed,
        transform=make_transform(data, config.model.start_token, tokenizer),
        weights=data.weights or None,
        prefetch=data.prefetch,
        tokenizer_fingerprint=tokenizer.fingerprint,
        rows=feed.rows.tolist(),
    )


def _train(session: _Session) -> None:
    """The part of ``train`` that holds the folder."""
    parts = session.parts
    config = parts.config
    state = _newest_state(session)
    first = int(state.step)
    if first >= config.train.steps:
        note(f"already at step {first} of {config.train.steps}: nothing to train")
        return
    if first:
        note(f"going on from step {first}")
    loop = _make_loop(session)
    if session.watch:
        facts = program_facts(loop.step, parts.abstract, parts.mesh, config, first)
        session.watch.barrier_check("program", facts)
    if jax.process_index() == 0:
        write_settings(config)
        loop.writer = MetricsWriter(run_folder(config), first)
    setup = {
        **run_summary(parts, session.loader),
        "peak_flops": loop.peak.flops,
        "peak_source": loop.peak.source,
        "environment": environment(),
    }
    loop.writer.write("setup", first, setup)
    _note_changed_data(session.checkpoints, first, loop.writer)
    _run_and_close(loop, state, session)


def _newest_state(session: _Session) -> TrainState:
    """The state of the newest intact checkpoint, or the state at step 0."""
    parts = session.parts
    saved = session.checkpoints.restore_newest(to_saved(parts.abstract), parts.config, note)
    if saved is None:
        state = first_state(parts)
        return started(parts, state) if parts.config.train.start else state
    shardings = jax.tree.map(lambda a: a.sharding, parts.abstract.opt_state)
    return fill_slots(from_saved(saved, parts.abstract), parts.optimizer, shardings)


def _make_loop(session: _Session) -> Loop:
    parts = session.parts
    config = parts.config
    execution = models.resolve_execution(config.execution, config.model)
    return Loop(
        config=config,
        step=step_of(parts),
        feed=session.feed,
        batches=session.loader.iterate,
        evaluate=make_validation(parts, session.feed, session.loader),
        checkpoints=session.checkpoints,
        writer=SilentWriter(),
        ledger=session.ledger,
        flops=flops_of(config),
        peak=device_peak(config.train.peak_tflops, execution.compute_dtype),
        watch=session.watch,
        profile=Profile(run_folder(config) / "profile", config.train.profile_steps),
        newest=lambda: _newest_state(session),
        lock=session.lock,
    )


def _note_changed_data(
    checkpoints: Checkpoints, step: int, writer: MetricsWriter | SilentWriter
) -> None:
    """Notes and records if the run goes on from ``step`` with other shards than before."""
    if not step:
        return
    before = checkpoints.manifest(step).get("data", checkpoints.data)
    if before != checkpoints.data:
        note(
            f"after step {step} the run reads other shards: {shortened(before)} before,"
            f" {shortened(checkpoints.data)} now"
        )
        writer.write("data_changed", step, {"before": before, "now": checkpoints.data})


def _run_and_close(loop: Loop, state: TrainState, session: _Session) -> None:
    """Runs the loop, then writes the goodput and closes all files, also after an error."""
    first = int(state.step)

    def write_goodput() -> None:
        counts = {**session.ledger.summary(), **cache_counts()}
        loop.writer.write("ledger", max(loop.done, first), counts)

    endings = (write_goodput, loop.writer.close, session.checkpoints.close, session.loader.close)
    try:
        loop.run(state)
    except BaseException as error:
        # Closing waits for other hosts, which may have caused the error; after a stop all close.
        if session.watch and not isinstance(error, Stopped):
            if session.lock:
                # Saves may still be written until the process ends, which then frees the folder.
                session.lock.keep()
            raise
        # An error while closing must not hide the error that ended the run.
        for end in endings:
            with contextlib.suppress(Exception):
                end()
        raise
    for end in endings:
        end()
