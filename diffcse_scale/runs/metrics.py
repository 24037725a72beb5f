"""The numbers that a run reports: sums kept on the device, read once per log line."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import psutil
import torch
from torch import Tensor

from diffcse_scale.distributed import all_max, all_mean, all_sum, gather_objects, rank, world_size
from diffcse_scale.objective.metric import Metric
from diffcse_scale.objective.objective import StepOutput
from diffcse_scale.runs.metric_table import CHECKPOINTS, TRAINING, WAITING, of_steps
from diffcse_scale.runs.own_time import OwnTime, slowest

T = TypeVar("T")

CPU = torch.device("cpu")

# the sums of a window in checkpoints of earlier commits, in their order there
_EARLIER = (
    "loss",
    "contrastive",
    "rtd",
    "positive_cosine",
    "negative_cosine",
    ("rtd_real", "rtd_replaced", "rtd_right_on_replaced", "rtd_right_on_kept"),
)
_COUNTS = ("_steps", "_sentences", "_real_tokens", "_positions")


class Window:
    """Means over the steps since the last log line. Adding a step does not wait for the device.

    Args:
        device: the device of this rank.
    """

    def __init__(self, device: torch.device = CPU) -> None:
        self._own = OwnTime(device)
        self._start()

    def _start(self) -> None:
        self._sums: dict[str, Tensor] = {}  # by the name of a step's statistic
        self._steps = 0
        self._sentences = self._real_tokens = self._positions = 0
        self._since = time.perf_counter()
        self._waited = self._checkpoints = 0.0

    def add(self, output: StepOutput, sentences: int, real_tokens: int, positions: int) -> None:
        """Add a step.

        Args:
            output: the step's loss and statistics.
            sentences: sentences of the global batch.
            real_tokens: real tokens of this rank.
            positions: positions computed by this rank, padding included.
        """
        values = {"loss": output.loss, **output.statistics}
        for name, value in values.items():
            value = value.detach().float()
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._steps += 1
        self._sentences += sentences
        self._real_tokens += real_tokens
        self._positions += positions

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Inside, time does not count in the rates: evaluations and checkpoints."""
        start = time.perf_counter()
        yield
        self._since += time.perf_counter() - start
        self._own.begin()

    @contextmanager
    def checkpointing(self) -> Iterator[None]:
        """Inside (and inside `paused`), time is counted as a checkpoint's."""
        start = time.perf_counter()
        yield
        self._checkpoints += time.perf_counter() - start

    def waiting(self, batches: Iterator[T]) -> Iterator[T]:
        """Yield the same batches, and measure the wait for each."""
        start = time.perf_counter()
        for batch in batches:
            self._waited += time.perf_counter() - start
            yield batch
            start = time.perf_counter()

    def state(self) -> list[dict[str, Any]]:
        """What a checkpoint keeps of an incomplete window, one entry per rank. Called on every rank.

        Without it the rows of a resumed run would be means over fewer steps.
        """
        sums = {name: float(value) for name, value in self._sums.items()}
        counts = {name: getattr(self, name) for name in _COUNTS}
        return gather_objects({"sums": sums, **counts})

    def restore(self, state: Sequence[dict[str, Any]], device: torch.device) -> None:
        """Continue from `state`. If the number of ranks has changed, each rank gets the mean of all."""
        self._start()
        if not state or not state[0]["sums"]:
            return
        same = len(state) == world_size()
        sums = [_by_name(entry["sums"]) for entry in state]
        for name in sums[0]:
            values = torch.tensor([own[name] for own in sums])
            self._sums[name] = (values[rank()] if same else values.mean(0)).to(device)
        for name in _COUNTS:
            counts = [entry[name] for entry in state]
            setattr(self, name, counts[rank()] if same else sum(counts) // len(counts))

    def begin_timing(self) -> None:
        """Called when training begins; earlier time does not count in the rates."""
        self._since = time.perf_counter()
        self._own.begin()

    @property
    def steps(self) -> int:
        """The number of steps in the window."""
        return self._steps

    def finite(self) -> bool:
        """Whether every loss of the window was finite on every rank. Waits for the device."""
        return not self._sums or bool(torch.isfinite(all_sum(self._sums["loss"])))

    def read(self) -> dict[str, float | None]:
        """Return the window's means over steps and ranks, and start a new window. Called on every rank.

        Shares and recalls are ratios of sums; None if there was nothing to count.
        """
        means = all_mean(torch.stack(list(self._sums.values()))) / self._steps
        device = means.device
        memory = memory_peaks(device)
        peaks = all_max(torch.tensor(list(memory.values()), device=device)).tolist()
        known = dict(zip(self._sums, means.tolist(), strict=True))  # now the device has finished all steps
        own = [0.0] * world_size()
        own[rank()] = self._own.read()
        sums = torch.tensor([self._real_tokens, self._positions, *own], dtype=torch.float64, device=device)
        real_tokens, positions, *of_ranks = all_sum(sums).tolist()
        seconds = time.perf_counter() - self._since
        row = {
            **{metric.name: _value(metric, known) for metric in of_steps(set(known))},
            "sentences_per_second": self._sentences / seconds,
            "real_tokens_per_second": real_tokens / seconds,
            "padding_share": 1 - real_tokens / positions,
            **dict(zip(memory, peaks, strict=True)),
            **slowest(of_ranks),
            TRAINING: seconds,
            WAITING: self._waited,
            CHECKPOINTS: self._checkpoints,
        }
        self._start()
        return row


def _value(metric: Metric, known: dict[str, float]) -> float | None:
    """The mean of a statistic, or a ratio of some sums; None if there was nothing to count."""
    return known[metric.name] if metric.ratio is None else metric.ratio.of(known)


def _by_name(sums: dict[str, float] | list[Any]) -> dict[str, float]:
    """The sums of a checkpoint by name; earlier commits saved them by position."""
    if isinstance(sums, dict):
        return sums
    *others, counts = sums
    *names, of_counts = _EARLIER
    return dict(zip([*names, *of_counts], [*others, *counts], strict=True))


def peak_memory_gb(device: torch.device) -> float:
    """Peak memory of this process in GB (1e9 bytes): the device's allocator, or resident memory on a CPU."""
    if device.type == "cpu":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    return float(torch.get_device_module(device).max_memory_allocated(device)) / 1e9


def memory_peaks(device: torch.device) -> dict[str, float]:
    """`peak_memory_gb` and, for an accelerator, the most that its allocator held, including gaps it cannot use."""
    peaks = {"peak_memory_gb": peak_memory_gb(device)}
    if device.type != "cpu":
        peaks["peak_reserved_gb"] = torch.get_device_module(device).max_memory_reserved(device) / 1e9
    return peaks


class Idleness:
    """Notices from the log lines that a run does not learn.

    Args:
        contrastive: whether the run contrasts views; otherwise the cosine of positives is meaningless.
    """

    LINES = 3  # log lines in a row, because a single one may be chance

    def __init__(self, contrastive: bool) -> None:
        self._contrastive, self._told = contrastive, False
        self._in_a_row = {"the gradient norm was 0": 0, "the cosine of positives was 1.000": 0}

    def warning(self, row: dict[str, Any]) -> str | None:
        """The warning to print after the log line `row`, if any; at most one per run."""
        equal = self._contrastive and row["positive_cosine"] >= 0.9995  # 1.000 on the console
        for (sign, lines), now in zip(self._in_a_row.items(), (row["gradient_norm"] == 0, equal), strict=True):
            self._in_a_row[sign] = lines + 1 if now else 0
        found = next((sign for sign, lines in self._in_a_row.items() if lines >= self.LINES), None)
        if self._told or found is None:
            return None
        self._told = True
        return (
            f"In the last {self.LINES} log lines {found}: there is nothing to learn from two views that are equal; set "
            "model.dropout=0.1, or give pairs of sentences that differ."
        )


def memory_gb(device: torch.device) -> float:
    """This process's current memory in GB: what the device's allocator holds, or resident memory on a CPU."""
    if device.type == "cpu":
        return psutil.Process().memory_info().rss / 1e9
    return float(torch.get_device_module(device).memory_reserved(device)) / 1e9
