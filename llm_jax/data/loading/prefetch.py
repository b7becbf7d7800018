"""Making things ahead in a background thread, with errors raised where they belong."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

T = TypeVar("T")


class Prefetched(Iterator[T]):
    """Endless iterator over ``make(step)``, made in a thread up to ``depth`` results ahead; 0 makes
    them when asked, without a thread.
    """

    def __init__(self, make: Callable[[int], T], start_step: int, depth: int):
        self._make, self._step, self._depth = make, start_step, depth
        if depth:
            self._queue: queue.Queue = queue.Queue(depth)
            self._stop = threading.Event()
            self._thread = threading.Thread(
                target=_fill, args=(make, start_step, self._queue, self._stop), daemon=True
            )
            self._thread.start()

    def __iter__(self) -> Prefetched:
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

    def __del__(self):
        if self._depth:
            self._stop.set()


def _fill(make, step: int, out: queue.Queue, stop: threading.Event) -> None:
    """Run by the thread; a module function, so that it holds no reference to the iterator and the
    iterator can be dropped.
    """
    while not stop.is_set():
        try:
            item = make(step)
        except BaseException as error:  # noqa: BLE001 – handed to the consumer, which raises it
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
