"""The signals that ask a process to stop, and their handlers.

Python calls a handler in the main thread, between two of its instructions: not while that waits in C, as for another
rank. Whoever presses Ctrl-C wants an end all the same, so a thread hears it too.
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
# `nohup`, and a shell that starts something in the background, has these ignored; they stay so
OF_TERMINALS = (signal.SIGHUP, signal.SIGINT)
# seconds within which Ctrl-C counts as one: a terminal tells all processes at once, and launchers pass it on to theirs
TOGETHER = 2.0
# seconds after which a main thread that is to leave, but waits for workers or another rank, is not waited for
GRACE = 10.0
PR_SET_PDEATHSIG = 1  # of Linux

Handler = Callable[[int, FrameType | None], Any]
_handlers: dict[signal.Signals, Handler] = {}


def listen(handler: Handler) -> None:
    """Have `handler` called for every request, in the main thread."""
    for number in REQUESTS:
        if number not in OF_TERMINALS or signal.getsignal(number) is not signal.SIG_IGN:
            _handlers[number] = handler
            signal.signal(number, handler)


@contextmanager
def listening(handler: Handler) -> Iterator[None]:
    """Inside, `handler` is called for every request; then whatever was called before."""
    before = {number: signal.getsignal(number) for number in REQUESTS}
    listen(handler)
    try:
        yield
    finally:
        for number, handler_before in before.items():
            signal.signal(number, handler_before)


def _note_thread() -> None:
    """Before a fork: the system ends a worker with the thread that has forked it, and a main thread lives longest."""
    global _forked_by_main
    _forked_by_main = threading.current_thread() is threading.main_thread()


def _leave_workers_alone() -> None:
    """In a forked worker: a request, which may reach all processes at once, is for the one that has forked it.

    Only TERM ends it, with which pools end their workers; a Python handler would wait for as long as its C code. And
    where the one that has forked it is killed it goes, too: nobody would end it.
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
    """Hears Ctrl-C in a thread while it is entered, where it has a handler, whatever that is.

    Args:
        heard: called in that thread for each, with the seconds since the first; may be set anew.
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
    """What a process leaves with that a signal has ended, as shells say it."""
    return 128 + number


def end_at_once(code: int) -> NoReturn:
    """End this process and its workers, whatever they are doing. From any thread."""
    end_workers()
    os._exit(code)


def end_workers() -> None:
    """End all processes that this one has started, and theirs."""
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            child.kill()
