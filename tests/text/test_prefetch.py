"""Results come in order, errors reach the consumer, and leaving never hangs."""

from __future__ import annotations

import threading
import time

import pytest

from diffcse_scale.text.prefetch import prefetch


def prefetch_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]


def test_results_come_in_order() -> None:
    with prefetch(lambda step: step * step, 3, 50) as results:
        assert list(results) == [step * step for step in range(3, 50)]


def test_results_are_made_ahead_but_no_further_than_the_depth() -> None:
    made = []
    with prefetch(lambda step: made.append(step), 0, 50, depth=2) as results:
        next(results)
        assert prefetch_threads()
        deadline = time.monotonic() + 5
        while len(made) < 4 and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(0.02)
        # one consumed, two in the queue, one waiting for room
        assert made == [0, 1, 2, 3]


def test_an_error_is_raised_where_its_result_was_due() -> None:
    with prefetch(lambda step: 1 // (2 - step), 0, 50) as results:
        assert [next(results), next(results)] == [0, 1]
        with pytest.raises(ZeroDivisionError):
            next(results)
    assert not prefetch_threads()


@pytest.mark.parametrize("consumed", [0, 1, 5])
def test_leaving_early_ends_the_thread(consumed: int) -> None:
    with prefetch(lambda step: step, 0, 10**9) as results:
        for _ in range(consumed):
            next(results)
    assert not prefetch_threads()


def test_an_error_of_the_consumer_ends_the_thread() -> None:
    with pytest.raises(RuntimeError, match="mine"), prefetch(lambda step: step, 0, 10**9) as results:
        next(results)
        raise RuntimeError("mine")
    assert not prefetch_threads()
