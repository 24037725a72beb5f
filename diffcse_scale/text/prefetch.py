"""Computes the next results in a thread while the consumer works."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from typing import TypeVar

T = TypeVar("T")


@contextmanager
def prefetch(make: Callable[[int], T], start: int, stop: int, depth: int = 2) -> Iterator[Iterator[T]]:
    """Iterate over make(start), ..., make(stop - 1), computed in a thread that is up to `depth` results ahead.

    An exception in `make` is raised when its result would have been consumed. The thread ends when the context
    is left, even early.
    """
    thread = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
    coming = (thread.submit(make, step) for step in range(start, stop))
    ready = deque(islice(coming, depth + 1))  # the last one is still being computed

    def consume() -> Iterator[T]:
        while ready:
            result = ready.popleft().result()
            ready.extend(islice(coming, 1))
            yield result

    try:
        yield consume()
    finally:
        thread.shutdown(cancel_futures=True)
