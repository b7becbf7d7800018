"""Tokens per second, MFU and the share of time spent on data, between records of a run."""

from __future__ import annotations

import time
from typing import NamedTuple

from llm_jax.config import Config
from llm_jax.goodput import Goodput
from llm_jax.training.flops import Flops, Peak


class _Interval(NamedTuple):
    """Start of the interval that speed is measured over.

    step: the last step before it.
    time: seconds of the clock.
    data: seconds that the run had waited for data.
    """

    step: int
    time: float
    data: float


class Throughput:
    """Measures speed from one recorded step to the next.

    Args:
        config: of the run.
        devices: number of devices of the mesh.
        flops: of a token.
        peak: of a device, for MFU.
        ledger: where waiting for data is counted.
    """

    def __init__(
        self, config: Config, devices: int, flops: Flops, peak: Peak, ledger: Goodput
    ) -> None:
        self._tokens_per_step = config.data.batch_size * config.data.seq_length
        self._devices = devices
        self._flops = flops
        self._peak = peak.flops * devices
        self._ledger = ledger
        self._interval: _Interval | None = None

    def skip(self) -> None:
        """Gives the interval up to the next recorded step no speed, since it holds compilation or
        a pause.
        """
        self._interval = None

    def measure(self, step: int) -> dict[str, float]:
        """Figures of the interval that ``step`` ends, and starts the next one. Empty if the
        interval has no speed.
        """
        last = self._interval
        now = _Interval(step, time.perf_counter(), self._ledger.seconds["data"])
        self._interval = now
        if last is None or step <= last.step:
            return {}
        seconds = now.time - last.time
        rate = self._tokens_per_step * (step - last.step) / seconds
        return {
            "tokens_per_second": rate,
            "tokens_per_second_per_device": rate / self._devices,
            "mfu_causal": rate * self._flops.causal / self._peak,
            "mfu_full": rate * self._flops.full / self._peak,
            "data_wait": (now.data - last.data) / seconds,
        }
