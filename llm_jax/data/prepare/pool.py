"""Running units of work: in this process, or in worker processes."""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from llm_jax.data.prepare import worker
from llm_jax.data.prepare.units import Unit, part_path
from llm_jax.progress import Bar
from llm_jax.storage.paths import path_of
from llm_jax.types import DataError

Part = dict[str, Any]
"""The counts of a finished unit."""


def default_workers(total_bytes: int, shard_bytes: int) -> int:
    """One process per core, or one where all of the text fits one shard."""
    return 1 if total_bytes < shard_bytes else len(os.sched_getaffinity(0))


def run_units(
    units: Iterable[Unit], settings: worker.Settings, workers: int, bar: Bar
) -> list[Part]:
    """Tokenize every unit that is not finished yet.

    Only as many units as keep the workers busy are in memory; the text of the others has not been
    read.

    Args:
        units: all units, the finished ones included.
        settings: of all units.
        workers: number of processes; 1 is this one.
        bar: advanced by the bytes read, as units are finished.

    Returns:
        The counts of all units, sorted by file name.

    Raises:
        DataError: a worker process was killed.
    """
    if workers == 1:
        parts = [_run_here(unit, settings, bar) for unit in units]
    else:
        parts = _run_in_workers(units, settings, workers, bar)
    return sorted(parts, key=lambda part: part["file"])


def _run_here(unit: Unit, settings: worker.Settings, bar: Bar) -> Part:
    part = _finished(unit, settings)
    if part is None:
        part = worker.write_unit(unit, settings)
    bar.advance(unit.bytes_read)
    return part


def _finished(unit: Unit, settings: worker.Settings) -> Part | None:
    """The counts of a unit that an earlier run finished; None for other units."""
    path = part_path(path_of(settings.out), unit)
    return json.loads(path.read_text()) if path.exists() else None


def _run_in_workers(
    units: Iterable[Unit], settings: worker.Settings, workers: int, bar: Bar
) -> list[Part]:
    parts: list[Part] = []
    running: dict[Future[Part], int] = {}
    pool = ProcessPoolExecutor(
        workers, mp_context=multiprocessing.get_context("spawn"), initializer=worker.start
    )
    try:
        for unit in units:
            part = _finished(unit, settings)
            if part is not None:
                parts.append(part)
                bar.advance(unit.bytes_read)
                continue
            running[pool.submit(worker.write_unit, unit, settings)] = unit.bytes_read
            if len(running) > workers + 1:
                parts += _collect(running, bar)
        while running:
            parts += _collect(running, bar)
    except BrokenProcessPool as error:
        raise DataError(
            "a worker process was killed (out of memory?); finished shards stay: run it again with "
            "fewer workers (--workers)"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    return parts


def _collect(running: dict[Future[Part], int], bar: Bar) -> list[Part]:
    """Wait for a unit; return the counts of all that have ended and forget them."""
    done, _ = wait(running, return_when=FIRST_COMPLETED)
    parts = []
    for future in done:
        bytes_read = running.pop(future)
        parts.append(future.result())
        bar.advance(bytes_read)
    return parts
