"""Requests to stop: who hears them, and that what was ignored stays ignored."""

from __future__ import annotations

import os
import signal
import time

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
