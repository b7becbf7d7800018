"""The loop around the train step: metrics one step behind, checkpoints, evaluation, a clean stop,
and no NaN saved.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import Array

from llm_jax.checkpoints.checkpoint import Checkpoints
from llm_jax.checkpoints.folder_lock import FolderLock
from llm_jax.config import Config
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

SKIPS, RETURNS = 10, 3
"""Updates skipped in a row, and returns to one checkpoint, after which a run with spikes ends."""


@dataclass
class Loop:
    """What ``run`` needs; every part can be replaced in a test. ``evaluate`` maps parameters to
    named floats.
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
    """Over the other hosts, where there are some."""
    profile: Profile = field(default_factory=lambda: Profile(Path()))
    newest: Callable[[], TrainState] | None = None
    """The state of the newest checkpoint, or the first; for going back."""
    lock: FolderLock | None = None
    """Of the run's folder, in the process that writes there."""
    done: int = 0
    """Steps whose metrics have been written."""
    _asked: int = 0
    """The signal by which all processes agreed to stop."""
    _offset: int = 0
    """Batches left out: step n reads batch n + this."""
    _returns: tuple[int, int] = (-1, 0)
    """The step last gone back to, and how often in a row."""
    _window: dict[str, float] = field(default_factory=dict)

    def run(self, state: TrainState) -> TrainState:
        """Steps from ``state.step`` to ``train.steps``; returns the last state, which is saved.

        Raises Stopped after SIGINT or SIGTERM (saved), NonFiniteError (nothing saved over the last
        good checkpoint), CheckpointError, SpikeError, and whatever the data raises.
        """
        first, total = int(state.step), self.config.train.steps
        if first >= total:
            return state
        with (
            stop_signals() as stop,
            jax.set_mesh(self.feed.mesh),
            progress("training", total - first, "step") as bar,
        ):
            while True:
                self._offset = offset_of(state.opt_state)
                iterator = iter(self.batches(int(state.step) + self._offset))
                try:
                    return self._steps(state, int(state.step), total, iterator, stop, bar)
                except Rewind as rewind:
                    spike = rewind.spike
                finally:
                    self.profile.close()
                    close = getattr(iterator, "close", None)
                    if close:
                        close()
                state = self._go_back(spike, bar)

    def _steps(
        self,
        state: TrainState,
        first: int,
        total: int,
        iterator: Iterator,
        stop: list[int],
        bar: Any,
    ) -> TrainState:
        c, ledger, pending = self.config.train, self.ledger, None
        self._open_window()
        for number in range(first, total):
            ledger.enter("data")
            item = next(iterator, None)
            if pending is not None and _running(pending[1]):
                ledger.rename("step")
            ledger.enter("step" if ledger.to_first_step else "compile")
            batch, said = self._place(item, number, stop)
            ledger.step = number + 1
            self.profile.before(number + 1, pending)
            with jax.profiler.StepTraceAnnotation("train", step_num=number + 1):
                state, metrics = self.step(state, batch)
            self.profile.after(number + 1, metrics)
            if number == first or _must_block():
                jax.block_until_ready(metrics)
            if ledger.to_first_step is None:
                ledger.first_step_done()
            if number == first:
                self._open_window()
            # Reading step n-1 while step n runs keeps the device busy.
            if pending is not None:
                self._record(*pending, bar)
            pending, done = (number + 1, metrics, said), number + 1
            look = self.evaluate is not None and (
                done == total or (c.eval_every and done % c.eval_every == 0)
            )
            problem = ""
            if look:
                self._record(*pending, bar)
                pending = None
                problem = self._evaluate(state, done)
            # Read once: a signal that comes after this line ends the next step, and only what is
            # saved is said to be.
            stopping = self._asked if jax.process_count() > 1 else (stop[0] if stop else 0)
            if stopping or problem or done == total or done % c.checkpoint_every == 0:
                if pending is not None:
                    self._record(*pending, bar)
                    pending = None
                self._save(state, done, wait=done == total or bool(stopping or problem))
            if problem:
                raise NonFiniteError(
                    f"{problem}; the training batches are finite, and step {done} is saved"
                )
            if pending is None:
                self._open_window()
            if stopping and done < total:
                raise Stopped(done, stopping)
        return state

    def _place(
        self, item: tuple[int, Batch, np.ndarray] | None, number: int, stop: list[int]
    ) -> tuple[Batch, Array | Heard]:
        """The loader's item on the devices, and what this process has to say with it."""
        if item is None:
            raise DataError(
                f"the data ended after {number} of {self.config.train.steps} steps; lower"
                " train.steps or add data"
            )
        step, batch, prints = item
        if step != number + self._offset:
            raise RuntimeError(
                f"the loader gave the batch of step {step} for step {number + self._offset}"
            )
        said = self.feed.start_consensus(prints, stop)
        if _must_block():
            jax.block_until_ready(said)
        return self.feed.put(batch), said

    def _record(self, step: int, metrics: dict, said: Array | Heard, bar: Any) -> None:
        """Waits for a step, stops on NaN, and writes its line."""
        self.ledger.enter("step")
        stamp, asked = finish_consensus(said)
        self._asked = self._asked or asked
        values = {name: v.item() for name, v in jax.device_get(metrics).items()}
        self.ledger.enter("log")
        self._check_lock()
        spike = take_spike(values, step, step - 1 + self._offset, stamp)
        finite = math.isfinite(values["loss"]) and math.isfinite(values["grad_norm"])
        if spike:
            self._spiked(spike)
        elif not finite:
            row = values["bad_row"]
            where = (
                f"first bad row {row}"
                if row >= 0
                else "every row's loss is finite, the gradient is not"
            )
            saved = self.checkpoints.steps()
            raise NonFiniteError(
                f"step {step}: loss {values['loss']}, gradient norm {values['grad_norm']}; batch"
                f" fingerprint {stamp:016x}, {where}. Nothing was saved over the last good"
                f" checkpoint{f' (step {saved[-1]})' if saved else ''}; lower"
                " optimizer.learning_rate or look at the batch"
            )
        self.done = step
        if self.watch and step % self.config.train.host_check_every == 0:
            self.watch.compare(
                f"step {step}",
                {
                    "step": step,
                    "batch": f"{stamp:016x}",
                    **{k: values[k] for k in ("loss", "param_norm")},
                },
            )
        now, tokens = time.perf_counter(), self.config.data.batch_size * self.config.data.seq_length
        steps, seconds = step - self._window["step"], now - self._window["time"]
        if self._window["step"] < 0 or steps < 1:
            # The first step of a window holds compilation or the pause before it.
            steps, seconds = 1, float("nan")
        rate, devices = tokens * steps / seconds, self.feed.mesh.size
        spent = self.ledger.seconds["data"] - self._window["data"]
        self._open_window(step, now)
        bar.advance(1, loss=values["loss"], **({} if math.isnan(rate) else {"tokens_s": rate}))
        if finite and (step % self.config.train.log_every == 0 or step == self.config.train.steps):
            speed = (
                {}
                if math.isnan(rate)
                else {
                    "tokens_per_second": rate,
                    "tokens_per_second_per_device": rate / devices,
                    "mfu_causal": rate * self.flops.causal / (self.peak.flops * devices),
                    "mfu_full": rate * self.flops.full / (self.peak.flops * devices),
                    "data_wait": spent / seconds,
                }
            )
            self.writer.write("train", step, {**values, **speed, "fingerprint": f"{stamp:016x}"})
            give_back_if_tight()

    def _spiked(self, spike: Spike) -> None:
        """Its update was not applied. Writes that down, or raises Rewind; SpikeError after too many
        in a row.
        """
        if self.config.train.spike == "rewind":
            raise Rewind(spike)
        self.writer.write("spike", spike.step, spike.record(spike.batch, "skipped"))
        note(f"{spike}; its update is skipped")
        if spike.in_a_row >= SKIPS:
            raise SpikeError(
                f"{spike}. {SKIPS} updates in a row were skipped; lower optimizer.learning_rate,"
                " raise train.spike_deviations, or look at the data; the same command goes on from"
                f" step {(self.checkpoints.steps() or [0])[-1]}"
            )

    def _go_back(self, spike: Spike, bar: Any) -> TrainState:
        """The newest checkpoint's state, told to leave out the batches from there to the spike's.
        SpikeError when that does not help.
        """
        assert self.newest is not None
        with self.ledger.spending("checkpoint"):
            self.checkpoints.wait()
            state = self.newest()
        step = int(state.step)
        self._returns = (step, self._returns[1] + 1 if self._returns[0] == step else 1)
        if self._returns[1] > RETURNS:
            raise SpikeError(
                f"{spike}. Going back to step {step} has not helped {RETURNS} times; lower"
                " optimizer.learning_rate, raise train.spike_deviations, or delete the newest"
                f" checkpoints in {self.checkpoints.folder} to go back further"
            )
        first = step + offset_of(state.opt_state)
        bar.advance(step - self.done)
        self.done = step
        self.writer.go_back(step)
        # Of the step that comes next: whoever goes on from this checkpoint goes back once more.
        self.writer.write("spike", step + 1, spike.record(first, "rewound"))
        note(f"{spike}; going back to step {step}, batches {first} to {spike.batch} are left out")
        offset = state.opt_state.offset + (spike.batch + 1 - first)
        return state._replace(opt_state=state.opt_state._replace(offset=offset))

    def _open_window(self, step: int = -1, now: float = 0.0) -> None:
        """Starts the interval that speed is measured over; step -1 discards the next one."""
        self._window = {"step": step, "time": now, "data": self.ledger.seconds["data"]}

    def _evaluate(self, state: TrainState, step: int) -> str:
        """Writes the figures of the validation split; returns what is wrong with them, or
        nothing.
        """
        assert self.evaluate is not None
        with self.ledger.spending("evaluate"):
            values = self.evaluate(state.params)
        if not math.isfinite(values["loss"]):
            return (
                f"step {step}: the loss of the validation split is {values['loss']}; look for very"
                " unusual documents in it"
            )
        self.writer.write("eval", step, values)
        note(
            f"step {step}: " + "  ".join(f"{k} {v:.4f}" for k, v in values.items() if v is not None)
        )
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
    """The step that gives these is not done: a batch that came meanwhile kept no device waiting."""
    return not metrics["loss"].is_ready()


def _must_block() -> bool:
    # jax 0.10's CPU collectives deadlock when processes with several devices queue steps.
    return jax.process_count() > 1 and jax.default_backend() == "cpu"
