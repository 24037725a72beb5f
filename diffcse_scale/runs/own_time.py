"""Measures how long each rank computes in a step before it first waits for others, and finds slow ranks.

A step takes as long as its slowest rank. The others wait for it in their exchanges, so whole steps take equally long on
all ranks. Only the time before a rank's first exchange is its own. At ZeRO-3 this time includes waits, because weights
are gathered in the forward pass, so slow ranks are less visible.
"""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

import torch

from diffcse_scale.distributed import before_next_exchange, gather_objects
from diffcse_scale.foundation.environment import host_name

LONGEST = 1000  # only the last steps of a window are used, at most so many
RANK, RATIO = "slowest_rank", "slowest_ratio"  # names in a row of metrics.jsonl


class OwnTime:
    """Measures the time that one rank spends on its own work; on a GPU by events, without waiting for the device.

    Args:
        device: the device of this rank.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._steps: deque[tuple[Any, Any]] = deque(maxlen=LONGEST)

    def begin(self) -> None:
        """Called when the next step begins, after all exchanges of the step before."""
        began = self._now()
        before_next_exchange(lambda: self._steps.append((began, self._now())))

    def _now(self) -> Any:
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def read(self) -> float:
        """The median over the steps since the last call, in seconds; 0 without steps. The device must be done."""
        if self._device.type == "cuda":
            seconds = [began.elapsed_time(met) / 1e3 for began, met in self._steps]
        else:
            seconds = [met - began for began, met in self._steps]
        self._steps.clear()
        return statistics.median(seconds) if seconds else 0.0


def slowest(seconds: Sequence[float]) -> dict[str, float]:
    """The slowest rank, and its time as a multiple of the median; empty if there is only one rank."""
    usual = statistics.median_low(seconds)
    if len(seconds) == 1 or usual <= 0:
        return {}
    return {RANK: seconds.index(max(seconds)), RATIO: max(seconds) / usual}


class Slowness:
    """Notices from the log lines that one rank keeps all others waiting. Every rank has one; all find the same."""

    LINES = 3  # log lines in a row, because a single one may be chance
    LARGE = 1.5

    def __init__(self) -> None:
        self._rank, self._in_a_row = -1, 0
        self._told: set[int] = set()

    def warning(self, row: dict[str, Any]) -> str | None:
        """The warning to print after the log line `row`, if any; once per slow rank. Called on every rank."""
        slow = row.get(RATIO, 0.0) >= self.LARGE
        if slow and row[RANK] == self._rank:
            self._in_a_row += 1
        else:
            self._rank, self._in_a_row = (row[RANK], 1) if slow else (-1, 0)
        if self._in_a_row < self.LINES or self._rank in self._told:
            return None
        self._told.add(self._rank)
        host = gather_objects(host_name())[self._rank]
        return (
            f"Rank {self._rank} on {host} is slow: it was the last to meet the others in {self.LINES} log lines, most "
            f"recently after {row[RATIO]:.1f} times the median rank's time, and they wait for it; check its device, or "
            "exclude that node."
        )
