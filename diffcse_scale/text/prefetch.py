"""Makes what comes next while the consumer works."""

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
    """Iterates over make(start), ..., make(stop - 1), made in a thread that is up to `depth` results ahead.

    An exception in `make` is raised where its result would have been consumed. On leaving, even early, the
    thread ends.
    """
    thread = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
    coming = (thread.submit(make, step) for step in range(start, stop))
    ready = deque(islice(coming, depth + 1))  # the last of them is in the making

    def consume() -> Iterator[T]:
        while ready:
            result = ready.popleft().result()
            ready.extend(islice(coming, 1))
            yield result

    try:
        yield consume()
    finally:
        thread.shutdown(cancel_futures=True)
