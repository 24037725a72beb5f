"""A rank that keeps the others waiting is found by its own time, though all steps take equally long."""

from __future__ import annotations

import time

import pytest
import torch

from diffcse_scale.distributed import gather_rows, rank
from diffcse_scale.foundation.environment import host_name
from diffcse_scale.objective.objective import StepOutput
from diffcse_scale.runs.metrics import Window
from diffcse_scale.runs.own_time import Slowness, slowest
from tests.support.ranks import run_ranks

SLOW, QUICK = 0.04, 0.002  # seconds before the first exchange


def _rows() -> list[tuple[dict[str, float | None], str | None]]:
    """Four log lines of four steps, the second of three ranks slow, and what is told after each."""
    window, slowness, told = Window(), Slowness(), []
    window.begin_timing()
    for step in range(16):
        time.sleep(SLOW if rank() == 1 else QUICK)
        gather_rows(torch.ones(1, 1))
        time.sleep(QUICK)
        gather_rows(torch.ones(1, 1))  # as every step has more of them
        window.add(StepOutput(torch.ones(()), {}), sentences=3, real_tokens=1, positions=1)
        if step % 4 == 3:
            row = window.read()
            told.append((row, slowness.warning(row)))
        with window.paused():
            time.sleep(0.05 if rank() == 0 else 0)  # as rank 0 writes files, is nobody's step
    return told


def test_a_slow_rank_is_named_when_it_lasts_and_once(tmp_path):
    lines, *others = run_ranks(_rows, 3, tmp_path)
    for row, _ in lines:
        assert row["slowest_rank"] == 1
        # a sleep is never shorter than it says, and on a busy machine longer
        assert 2 < row["slowest_ratio"] <= 1.5 * SLOW / QUICK
    first, second, third, fourth = (told for _, told in lines)
    assert first is second is fourth is None
    assert third is not None and third.startswith(f"Rank 1 on {host_name()} is slow: ")
    assert all([told for _, told in other] == [None, None, third, None] for other in others)


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ([0.2], {}),
        ([0.1, 0.2], {"slowest_rank": 1, "slowest_ratio": 2.0}),
        ([0.6, 0.1, 0.2, 0.3], {"slowest_rank": 0, "slowest_ratio": 3.0}),
        ([0.0, 0.0], {}),  # nothing was exchanged
    ],
)
def test_the_slowest_is_compared_with_the_median(seconds, expected):
    assert slowest(seconds) == pytest.approx(expected)
