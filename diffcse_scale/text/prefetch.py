"""Makes what comes next while the consumer works."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple, TypeVar

T = TypeVar("T")


class _Failure(NamedTuple):
    error: BaseException


class _End:
    pass


@contextmanager
def prefetch(make: Callable[[int], T], start: int, stop: int, depth: int = 2) -> Iterator[Iterator[T]]:
    """Iterates over make(start), ..., make(stop - 1), made in a thread that is up to `depth` results ahead.

    An exception in `make` is raised where its result would have been consumed. On leaving, even early, the
    thread ends.
    """
    ready: queue.Queue[T | _Failure | _End] = queue.Queue(depth)
    closed = threading.Event()

    def work() -> None:
        try:
            for step in range(start, stop):
                ready.put(make(step))
                if closed.is_set():
                    return
            ready.put(_End())
        except BaseException as error:  # handed over, whatever it is
            ready.put(_Failure(error))

    def consume() -> Iterator[T]:
        while not isinstance(item := ready.get(), _End):
            if isinstance(item, _Failure):
                raise item.error
            yield item

    thread = threading.Thread(target=work, name="prefetch", daemon=True)
    thread.start()
    try:
        yield consume()
    finally:
        closed.set()
        while thread.is_alive():  # it may wait for room in the queue, once
            while not ready.empty():
                ready.get_nowait()
            thread.join(timeout=0.01)
