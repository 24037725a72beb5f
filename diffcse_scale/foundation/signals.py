"""The signals that ask a process to stop, and their handlers.

Python calls a handler in the main thread between two of its instructions, so not while the thread waits in C code, for
example for another rank. Ctrl-C must work even then, so a separate thread hears it too.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

import psutil

REQUESTS = (signal.SIGUSR1, signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
# `nohup`, and a shell that starts a background process, make it ignore these; they stay ignored
OF_TERMINALS = (signal.SIGHUP, signal.SIGINT)
# seconds within which several Ctrl-C count as one: a terminal signals all processes, and launchers pass it on as well
TOGETHER = 2.0
# seconds that a main thread has to exit; it may be waiting for workers or another rank
GRACE = 10.0
PR_SET_PDEATHSIG = 1  # Linux only

Handler = Callable[[int, FrameType | None], Any]
_handlers: dict[signal.Signals, Handler] = {}


def listen(handler: Handler) -> None:
    """Install `handler` for every request. It is called in the main thread."""
    for number in REQUESTS:
        if number not in OF_TERMINALS or signal.getsignal(number) is not signal.SIG_IGN:
            _handlers[number] = handler
            signal.signal(number, handler)


@contextmanager
def listening(handler: Handler) -> Iterator[None]:
    """Install `handler` for every request inside the block, then restore the earlier handlers."""
    before = {number: signal.getsignal(number) for number in REQUESTS}
    listen(handler)
    try:
        yield
    finally:
        for number, handler_before in before.items():
            signal.signal(number, handler_before)


def _note_thread() -> None:
    """Note before a fork whether the main thread forks. The parent-death signal follows the forking thread."""
    global _forked_by_main
    _forked_by_main = threading.current_thread() is threading.main_thread()


def _leave_workers_alone() -> None:
    """Reset handlers in a forked worker. A request may reach all processes, but only the parent must handle it.

    Only TERM ends a worker, because pools end their workers with it. A Python handler would wait until C code
    returns. If the parent is killed the worker is killed too, because nobody else would end it.
    """
    if _handlers and _forked_by_main and sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.set_wakeup_fd(-1)
    for number, handler in _handlers.items():
        if signal.getsignal(number) == handler:
            signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.SIG_IGN)


_forked_by_main = False
os.register_at_fork(before=_note_thread, after_in_child=_leave_workers_alone)


class Interrupts:
    """Inside, a thread hears Ctrl-C, if SIGINT has any Python handler.

    Args:
        heard: called in that thread for each Ctrl-C with the seconds since the first; may be replaced.
    """

    def __init__(self, heard: Callable[[float], object]) -> None:
        self.heard = heard

    def __enter__(self) -> Interrupts:
        reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        self._before = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        threading.Thread(target=self._hear, args=(reader,), name="interrupts", daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        signal.set_wakeup_fd(self._before)
        os.close(self._writer)

    def _hear(self, reader: int) -> None:
        first = None
        while number := os.read(reader, 1):
            if number[0] == signal.SIGINT:
                now = time.monotonic()
                first = now if first is None else first
                self.heard(now - first)
        os.close(reader)


def exit_code_after(number: int) -> int:
    """Exit code of a process that was ended by a signal, by the convention of shells."""
    return 128 + number


def end_at_once(code: int) -> NoReturn:
    """End this process and its workers, whatever they are doing. May be called from any thread."""
    end_workers()
    os._exit(code)


def end_workers() -> None:
    """Kill all descendants of this process."""
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            child.kill()
