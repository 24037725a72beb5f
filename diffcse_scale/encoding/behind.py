"""Runs work in a background thread, so that the main thread can keep a device busy."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Behind(Generic[T]):
    """One thread that does what it is given, in that order; the giving thread gets to know the results.

    It is entered as a context. On leaving, all is done and delivered; after an exception, what was not begun is left
    out, and what was finished is delivered all the same.

    Args:
        deliver: called with each result, in order, by the thread that calls `submit`, `look` or leaves.
        depth: so many tasks may be unfinished; with more, `submit` waits.
    """

    def __init__(self, deliver: Callable[[T], object], depth: int = 1) -> None:
        self._deliver, self._depth = deliver, depth
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="behind")
        self._given: deque[Future[T]] = deque()

    def submit(self, task: Callable[..., T], *arguments: Any) -> None:
        """Have it done; raises what an earlier task raised."""
        while len(self._given) >= self._depth:
            self._deliver(self._given.popleft().result())
        self._given.append(self._thread.submit(task, *arguments))

    def look(self) -> None:
        """Deliver what is finished, without waiting; raises what a task raised."""
        while self._given and self._given[0].done():
            self._deliver(self._given.popleft().result())

    def __enter__(self) -> Behind[T]:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            while kind is None and self._given:
                self._deliver(self._given.popleft().result())
        finally:
            self._thread.shutdown(cancel_futures=True)
            for task in self._given:
                if not task.cancelled() and task.exception() is None:
                    self._deliver(task.result())
