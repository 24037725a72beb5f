"""How long each rank computes before it first waits for others in a step, and which rank is slow.

A step takes as long as its slowest rank: the others wait for it in their exchanges, so the times of whole steps are
equal. What a rank does before its first exchange is its own. At ZeRO-3 that has waits in it, as weights are gathered
in the forward pass: slow ranks are then less visible.
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

LONGEST = 1000  # steps of a window that are looked at, the last ones
RANK, RATIO = "slowest_rank", "slowest_ratio"  # in a row of metrics.jsonl


class OwnTime:
    """The time that one rank spends on its own work; on a GPU the device's time, without waiting for the device.

    Args:
        device: what this rank computes on.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._steps: deque[tuple[Any, Any]] = deque(maxlen=LONGEST)

    def begin(self) -> None:
        """The next step begins: what the step before has exchanged is done."""
        began = self._now()
        before_next_exchange(lambda: self._steps.append((began, self._now())))

    def _now(self) -> Any:
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def read(self) -> float:
        """The median over steps since the last call, in seconds; 0 of none. The device must have done them."""
        if self._device.type == "cuda":
            seconds = [began.elapsed_time(met) / 1e3 for began, met in self._steps]
        else:
            seconds = [met - began for began, met in self._steps]
        self._steps.clear()
        return statistics.median(seconds) if seconds else 0.0


def slowest(seconds: Sequence[float]) -> dict[str, float]:
    """The slowest of all ranks, and its time as a multiple of the median; nothing where there is only one rank."""
    usual = statistics.median_low(seconds)
    if len(seconds) == 1 or usual <= 0:
        return {}
    return {RANK: seconds.index(max(seconds)), RATIO: max(seconds) / usual}


class Slowness:
    """Notices from the log lines that one rank keeps all others waiting. Every rank has one, and all find the same."""

    LINES = 3  # in a row: one may be chance
    LARGE = 1.5

    def __init__(self) -> None:
        self._rank, self._in_a_row = -1, 0
        self._told: set[int] = set()

    def warning(self, row: dict[str, Any]) -> str | None:
        """What is to be told after the log line `row`; of each rank it is told once. Called on every rank."""
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
