"""Requests to stop: who hears them, and that what was ignored stays ignored."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from multiprocessing.connection import Connection

import psutil
import pytest

from diffcse_scale.foundation.signals import OF_TERMINALS, REQUESTS, Interrupts, listening


@pytest.mark.parametrize("number", REQUESTS)
def test_inside_a_handler_hears_it_and_afterwards_the_one_before(number: signal.Signals) -> None:
    before, heard = signal.getsignal(number), []
    with listening(lambda number, _: heard.append(number)):
        os.kill(os.getpid(), number)
    assert heard == [number] and signal.getsignal(number) == before


@pytest.mark.parametrize("number", OF_TERMINALS)
def test_what_nohup_or_a_shell_has_ignored_stays_ignored(number: signal.Signals) -> None:
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with listening(lambda *_: pytest.fail("heard")):
            os.kill(os.getpid(), number)
    finally:
        signal.signal(number, before)


def test_a_thread_hears_ctrl_c_and_how_long_after_the_first_one() -> None:
    heard: list[float] = []
    with listening(lambda *_: None), Interrupts(heard.append):
        for count, number in enumerate((signal.SIGINT, signal.SIGTERM, signal.SIGINT), start=1):
            os.kill(os.getpid(), number)
            time.sleep(0.02 * count)
    assert len(heard) == 2 and heard[0] == 0 and 0.06 <= heard[1] < 2


def _with_a_worker(line: Connection) -> None:
    with listening(lambda *_: None):
        if worker := os.fork():
            line.send(worker)
        time.sleep(60)


def test_a_worker_of_a_process_that_is_killed_goes_too() -> None:
    fork = multiprocessing.get_context("fork")
    line, other = fork.Pipe()
    process = fork.Process(target=_with_a_worker, args=(other,))
    process.start()
    worker = psutil.Process(line.recv())
    time.sleep(0.05)  # it has begun
    process.kill()
    process.join()
    _, alive = psutil.wait_procs([worker], timeout=5)
    assert not alive or worker.status() == psutil.STATUS_ZOMBIE
