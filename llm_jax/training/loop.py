"""The loop around the train step: metrics one step behind, checkpoints, evaluation, a clean stop,
and no checkpoint of a state that is not finite.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array

from llm_jax.checkpoints.checkpoint import Checkpoints
from llm_jax.checkpoints.folder_lock import FolderLock
from llm_jax.config import Config
from llm_jax.config.run import RewindSpikesConfig
from llm_jax.goodput import Goodput
from llm_jax.host_memory import give_back_if_tight
from llm_jax.multihost.global_batch import Feed, Heard, finish_consensus
from llm_jax.multihost.signals import Stopped, stop_signals
from llm_jax.multihost.watchdog import Watchdog
from llm_jax.progress import note, progress
from llm_jax.training.flops import Flops, Peak
from llm_jax.training.metrics import MetricsWriter, SilentWriter
from llm_jax.training.profile import Profile
from llm_jax.training.spikes import Rewind, Spike, SpikeError, offset_of, take_spike
from llm_jax.training.state import TrainState, to_saved
from llm_jax.types import Batch, DataError, NonFiniteError, Params

# A run with spikes ends after this many updates skipped in a row, and after this many returns to
# the same checkpoint.
SKIPS = 10
RETURNS = 3


class Pending(NamedTuple):
    """A step that was started and whose numbers were not read yet.

    step: its number, from 1.
    metrics: arrays that may still be computed.
    consensus: of the processes, as ``Feed.start_consensus`` started it.
    """

    step: int
    metrics: dict[str, Array]
    consensus: Array | Heard


class Window(NamedTuple):
    """Start of the interval that speed is measured over.

    step: the last step before it; -1 if the interval has no speed, since it holds compilation or a
        pause.
    time: seconds of the clock.
    data: seconds that the run had waited for data.
    """

    step: int
    time: float
    data: float


@dataclass
class Loop:
    """Runs a step function over batches; tests replace any part of it.

    Attributes:
        config: of the run.
        step: (state, batch) -> (state, metrics).
        feed: places batches on the devices.
        batches: step -> (step, batch, row fingerprints) from that step on.
        evaluate: parameters -> named numbers of the validation split; None without one.
        checkpoints: where states are saved.
        writer: where metrics are written.
        ledger: where wall time is counted.
        flops: of a token.
        peak: of a device, for MFU.
        watch: over the other hosts of the run, where there are some.
        profile: writes profiles of chosen steps.
        newest: the state of the newest checkpoint, or the first state; for going back.
        lock: of the run's folder, in the process that writes there.
        done: steps whose metrics were written.
    """

    config: Config
    step: Callable[[TrainState, Batch], tuple[TrainState, dict]]
    feed: Feed
    batches: Callable[[int], Iterable[tuple[int, Batch, np.ndarray]]]
    evaluate: Callable[[Params], dict[str, float | None]] | None
    checkpoints: Checkpoints
    writer: MetricsWriter | SilentWriter
    ledger: Goodput
    flops: Flops
    peak: Peak
    watch: Watchdog | None = None
    profile: Profile = field(default_factory=lambda: Profile(Path()))
    newest: Callable[[], TrainState] | None = None
    lock: FolderLock | None = None
    done: int = 0
    # The signal by which all processes agreed to stop, 0 for none.
    _agreed: int = 0
    # Signals that this process received.
    _received: list[int] = field(default_factory=list)
    # Batches left out: step n reads batch n + offset.
    _offset: int = 0
    # The step that the run last went back to, and how often in a row.
    _returns: tuple[int, int] = (-1, 0)
    _window: Window = Window(-1, 0.0, 0.0)  # noqa: RUF009 (immutable)
    _pending: Pending | None = None
    _bar: Any = None

    def run(self, state: TrainState) -> TrainState:
        """Steps from ``state.step`` to ``train.steps``; returns the last state, which is saved.

        Raises:
            Stopped: after SIGINT or SIGTERM; the state is saved.
            NonFiniteError: the loss or the gradient is not finite; nothing is saved.
            CheckpointError: a checkpoint could not be written.
            SpikeError: spikes do not end.
        """
        first = int(state.step)
        total = self.config.train.steps
        if first >= total:
            return state
        with (
            stop_signals() as self._received,
            jax.set_mesh(self.feed.mesh),
            progress("training", total - first, "step") as self._bar,
        ):
            while True:
                self._offset = offset_of(state.opt_state)
                iterator = iter(self.batches(int(state.step) + self._offset))
                try:
                    return self._steps(state, iterator)
                except Rewind as rewind:
                    spike = rewind.spike
                finally:
                    self.profile.close()
                    close = getattr(iterator, "close", None)
                    if close:
                        close()
                state = self._go_back(spike)

    def _steps(self, state: TrainState, iterator: Iterator) -> TrainState:
        """Steps from ``state.step`` on, with all that follows a step."""
        c = self.config.train
        self._pending = None
        self._open_window()
        first = int(state.step)
        for number in range(first, c.steps):
            state = self._step(state, number, iterator, is_first=number == first)
            done = number + 1
            problem = self._evaluate(state, done)
            # Read once: a signal that comes later ends the next step, and a message never names a
            # step as saved that is not.
            signum = self._signal()
            ends = bool(signum or problem or done == c.steps)
            if ends or done % c.checkpoint_every == 0:
                self._record()
                self._save(state, done, wait=ends)
            if problem:
                raise NonFiniteError(
                    f"{problem}; the training batches are finite, and step {done} is saved"
                )
            if self._pending is None:
                self._open_window()
            if signum and done < c.steps:
                raise Stopped(done, signum)
        return state

    def _step(
        self, state: TrainState, number: int, iterator: Iterator, *, is_first: bool
    ) -> TrainState:
        """Starts step ``number``, from 0, and records the one before it while this one runs."""
        ledger = self.ledger
        ledger.enter("data")
        item = next(iterator, None)
        if self._pending is not None and _running(self._pending.metrics):
            ledger.rename("step")
        ledger.enter("compile" if ledger.to_first_step is None else "step")
        batch, consensus = self._place(item, number)
        ledger.step = number + 1
        self.profile.before(number + 1, self._pending)
        with jax.profiler.StepTraceAnnotation("train", step_num=number + 1):
            state, metrics = self.step(state, batch)
        self.profile.after(number + 1, metrics)
        if is_first or _must_block():
            jax.block_until_ready(metrics)
        if ledger.to_first_step is None:
            ledger.first_step_done()
        if is_first:
            self._open_window()
        # Reading the numbers of a step while the next one runs keeps the device busy.
        self._record()
        self._pending = Pending(number + 1, metrics, consensus)
        return state

    def _place(
        self, item: tuple[int, Batch, np.ndarray] | None, number: int
    ) -> tuple[Batch, Array | Heard]:
        """The loader's batch on the devices, and the consensus of the processes on it."""
        if item is None:
            raise DataError(
                f"the data ended after {number} of {self.config.train.steps} steps; lower"
                " train.steps or add data"
            )
        step, batch, fingerprints = item
        if step != number + self._offset:
            raise RuntimeError(
                f"the loader gave the batch of step {step} for step {number + self._offset}"
            )
        consensus = self.feed.start_consensus(fingerprints, self._received)
        if _must_block():
            jax.block_until_ready(consensus)
        return self.feed.put(batch), consensus

    def _signal(self) -> int:
        """The signal that ends the run after this step, 0 for none."""
        if jax.process_count() > 1:
            return self._agreed
        return self._received[0] if self._received else 0

    def _record(self) -> None:
        """Waits for the pending step, if there is one, checks its numbers, and writes them.

        Raises:
            NonFiniteError: its loss or gradient norm is not finite.
            Rewind: it is a spike, and the run goes back.
        """
        if self._pending is None:
            return
        step, metrics, consensus = self._pending
        self._pending = None
        self.ledger.enter("step")
        fingerprint, signum = finish_consensus(consensus)
        self._agreed = self._agreed or signum
        values = {name: v.item() for name, v in jax.device_get(metrics).items()}
        self.ledger.enter("log")
        self._check_lock()
        spike = take_spike(values, step, step - 1 + self._offset, fingerprint)
        finite = math.isfinite(values["loss"]) and math.isfinite(values["grad_norm"])
        if spike:
            self._spiked(spike)
        elif not finite:
            raise self._not_finite(step, values, fingerprint)
        self.done = step
        self._compare_hosts(step, values, fingerprint)
        speed = self._speed(step)
        rate = {"tokens_s": speed["tokens_per_second"]} if speed else {}
        self._bar.advance(1, loss=values["loss"], **rate)
        c = self.config.train
        if finite and (step % c.log_every == 0 or step == c.steps):
            line = {**values, **speed, "fingerprint": f"{fingerprint:016x}"}
            self.writer.write("train", step, line)
            give_back_if_tight()

    def _not_finite(self, step: int, values: dict[str, Any], fingerprint: int) -> NonFiniteError:
        row = values["bad_row"]
        where = "every row's loss is finite, the gradient is not"
        if row >= 0:
            where = f"first bad row {row}"
        saved = self.checkpoints.steps()
        good = f" (step {saved[-1]})" if saved else ""
        return NonFiniteError(
            f"step {step}: loss {values['loss']}, gradient norm {values['grad_norm']}; batch"
            f" fingerprint {fingerprint:016x}, {where}. Nothing was saved over the last good"
            f" checkpoint{good}; lower optimizer.learning_rate or look at the batch"
        )

    def _compare_hosts(self, step: int, values: dict[str, Any], fingerprint: int) -> None:
        """Every ``train.hosts.check_every`` steps, raises if the hosts computed different
        numbers.
        """
        if not self.watch or step % self.config.train.hosts.check_every:
            return
        numbers = {name: values[name] for name in ("loss", "param_norm")}
        self.watch.compare(
            f"step {step}", {"step": step, "batch": f"{fingerprint:016x}", **numbers}
        )

    def _speed(self, step: int) -> dict[str, float]:
        """Figures of the interval since the window was opened, which ``step`` ends; empty if it has
        no speed.
        """
        window = self._window
        now = time.perf_counter()
        waited = self.ledger.seconds["data"] - window.data
        self._open_window(step, now)
        if window.step < 0 or step <= window.step:
            return {}
        seconds = now - window.time
        data = self.config.data
        rate = data.batch_size * data.seq_length * (step - window.step) / seconds
        devices = self.feed.mesh.size
        return {
            "tokens_per_second": rate,
            "tokens_per_second_per_device": rate / devices,
            "mfu_causal": rate * self.flops.causal / (self.peak.flops * devices),
            "mfu_full": rate * self.flops.full / (self.peak.flops * devices),
            "data_wait": waited / seconds,
        }

    def _open_window(self, step: int = -1, now: float = 0.0) -> None:
        """Starts the interval that speed is measured over; step -1 gives the next one no speed."""
        self._window = Window(step, now, self.ledger.seconds["data"])

    def _spiked(self, spike: Spike) -> None:
        """Writes down a spike, whose update was not applied.

        Raises:
            Rewind: ``train.spike`` is rewind.
            SpikeError: too many updates in a row were skipped.
        """
        if isinstance(self.config.train.spike, RewindSpikesConfig):
            raise Rewind(spike)
        self.writer.write("spike", spike.step, spike.record(spike.batch, "skipped"))
        note(f"{spike}; its update is skipped")
        if spike.in_a_row >= SKIPS:
            raise SpikeError(
                f"{spike}. {SKIPS} updates in a row were skipped; lower optimizer.learning_rate,"
                " raise train.spike.deviations, or look at the data; the same command goes on from"
                f" step {(self.checkpoints.steps() or [0])[-1]}"
            )

    def _go_back(self, spike: Spike) -> TrainState:
        """The newest checkpoint's state, set to leave out the batches from there to the spike's.

        Raises:
            SpikeError: the run went back to the same checkpoint too often.
        """
        assert self.newest is not None
        with self.ledger.spending("checkpoint"):
            self.checkpoints.wait()
            state = self.newest()
        step = int(state.step)
        again = self._returns[0] == step
        self._returns = (step, self._returns[1] + 1 if again else 1)
        if self._returns[1] > RETURNS:
            raise SpikeError(
                f"{spike}. Going back to step {step} has not helped {RETURNS} times; lower"
                " optimizer.learning_rate, raise train.spike.deviations, or delete the newest"
                f" checkpoints in {self.checkpoints.folder} to go back further"
            )
        first = step + offset_of(state.opt_state)
        self._bar.advance(step - self.done)
        self.done = step
        self.writer.go_back(step)
        # Recorded for the next step, so that a run that resumes from this checkpoint, and drops
        # later records, goes back once more.
        self.writer.write("spike", step + 1, spike.record(first, "rewound"))
        note(f"{spike}; going back to step {step}, batches {first} to {spike.batch} are left out")
        offset = state.opt_state.offset + (spike.batch + 1 - first)
        return state._replace(opt_state=state.opt_state._replace(offset=offset))

    def _evaluate(self, state: TrainState, step: int) -> str:
        """Where an evaluation is due after ``step``, writes its figures. Returns what is wrong with
        them, or "".
        """
        c = self.config.train
        due = step == c.steps or (c.eval_every and step % c.eval_every == 0)
        if self.evaluate is None or not due:
            return ""
        self._record()
        with self.ledger.spending("evaluate"):
            values = self.evaluate(state.params)
        loss = values["loss"]
        if loss is None or not math.isfinite(loss):
            return (
                f"step {step}: the loss of the validation split is {loss}; look for very unusual"
                " documents in it"
            )
        self.writer.write("eval", step, values)
        shown = "  ".join(f"{k} {v:.4f}" for k, v in values.items() if v is not None)
        note(f"step {step}: {shown}")
        return ""

    def _save(self, state: TrainState, step: int, wait: bool) -> None:
        self._check_lock()
        with self.ledger.spending("checkpoint"):
            # First, so that no checkpoint is ahead of the records.
            self.writer.sync(step)
            self.checkpoints.save(step, to_saved(state), self.config)
            if wait:
                self.checkpoints.wait()

    def _check_lock(self) -> None:
        if self.lock:
            self.lock.check()


def _running(metrics: dict) -> bool:
    """Whether the step that returned these is not done: a batch that arrives before it is kept no
    device waiting.
    """
    return not metrics["loss"].is_ready()


def _must_block() -> bool:
    # jax 0.10's CPU collectives deadlock when processes with several devices queue steps.
    return jax.process_count() > 1 and jax.default_backend() == "cpu"
