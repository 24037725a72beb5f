"""A worker that the run has forked is ended by a signal at once; the run itself only takes a note."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator

import pytest

from diffcse_scale.training.supervision import SIGNALS, Supervision


@pytest.fixture
def _listening() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    Supervision(run=None, watchdog=None)  # type: ignore[arg-type]  # neither is asked before a tick
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("_listening")
@pytest.mark.parametrize("number", SIGNALS)
def test_a_forked_worker_does_not_listen(number: signal.Signals):
    # a handler of Python's would not be called while a worker waits in C, as those of a pool do
    queue = multiprocessing.get_context("fork").SimpleQueue()
    worker = multiprocessing.get_context("fork").Process(
        target=lambda: (queue.put(signal.getsignal(number)), time.sleep(60))
    )
    worker.start()
    assert queue.get() is signal.SIG_DFL
    os.kill(worker.pid, number)
    worker.join(10)
    assert worker.exitcode == -number


@pytest.mark.usefixtures("_listening")
def test_the_process_itself_goes_on():
    os.kill(os.getpid(), signal.SIGUSR1)
    assert signal.getsignal(signal.SIGUSR1) is not signal.SIG_DFL
