"""Results made ahead in a background thread; an error is raised when its result is asked for."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

T = TypeVar("T")


class Prefetched(Iterator[T]):
    """Endless iterator over ``make(start_step)``, ``make(start_step + 1)``, …

    Args:
        make: makes the result of a step.
        start_step: the first step.
        depth: number of results that a thread makes ahead; 0 makes them on demand, without a
            thread.
    """

    def __init__(self, make: Callable[[int], T], start_step: int, depth: int):
        self._make = make
        self._step = start_step
        self._depth = depth
        if depth:
            self._queue: queue.Queue[Any] = queue.Queue(depth)
            self._stop = threading.Event()
            self._thread = threading.Thread(
                target=_fill, args=(make, start_step, self._queue, self._stop), daemon=True
            )
            self._thread.start()

    def __iter__(self) -> Prefetched[T]:
        return self

    def __next__(self) -> T:
        if not self._depth:
            self._step += 1
            return self._make(self._step - 1)
        if self._stop.is_set():
            raise StopIteration
        item = self._queue.get()
        if isinstance(item, BaseException):
            self.close()
            raise item
        return item

    def close(self) -> None:
        """End the thread; no more batches come."""
        if self._depth:
            self._stop.set()
            self._thread.join()

    def __del__(self) -> None:
        if self._depth:
            self._stop.set()


def _fill(
    make: Callable[[int], Any], step: int, out: queue.Queue[Any], stop: threading.Event
) -> None:
    """Run by the thread. No method, so that the thread does not keep the iterator alive."""
    while not stop.is_set():
        item: Any
        try:
            item = make(step)
        except BaseException as error:  # noqa: BLE001 – the consumer raises it
            item = error
        while not stop.is_set():
            try:
                out.put(item, timeout=0.1)
                break
            except queue.Full:
                continue
        if isinstance(item, BaseException):
            return
        step += 1
