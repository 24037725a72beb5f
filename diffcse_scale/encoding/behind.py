"""Runs work in a background thread, so that the main thread can keep a device busy."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Behind(Generic[T]):
    """One thread that runs tasks in order and delivers their results to the submitting thread.

    Use it as a context. On exit all tasks are finished and delivered. After an exception, tasks that have not started
    are dropped, but results of finished ones are still delivered.

    Args:
        deliver: called with each result, in order, in the thread that calls `submit` or `look` or exits the context.
        depth: the most unfinished tasks; `submit` waits if there are more.
    """

    def __init__(self, deliver: Callable[[T], object], depth: int = 1) -> None:
        self._deliver, self._depth = deliver, depth
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="behind")
        self._given: deque[Future[T]] = deque()

    def submit(self, task: Callable[..., T], *arguments: Any) -> None:
        """Submit a task. Raises the exception of an earlier task."""
        while len(self._given) >= self._depth:
            self._deliver(self._given.popleft().result())
        self._given.append(self._thread.submit(task, *arguments))

    def look(self) -> None:
        """Deliver finished results without waiting. Raises the exception of a task."""
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
