"""What a run reports: sums kept on the device, read once a log line."""

from __future__ import annotations

import json
import math
import os
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO, TypeVar

import torch
from torch import Tensor

from diffcse_scale.distributed import all_max, all_mean, all_sum, gather_objects, rank, world_size
from diffcse_scale.model.diffcse import StepOutput

T = TypeVar("T")

# name in metrics.jsonl -> (label, format) of the console line
CONSOLE = {
    "loss": ("loss", "{:.4f}"),
    "contrastive": ("contrastive", "{:.4f}"),
    "rtd": ("RTD", "{:.4f}"),
    "positive_cosine": ("pos cos", "{:.3f}"),
    "negative_cosine": ("neg cos", "{:.3f}"),
    "rtd_recall_replaced": ("recall replaced", "{:.1%}"),
    "rtd_recall_kept": ("kept", "{:.1%}"),
    "replaced_share": ("replaced share", "{:.1%}"),
    "gradient_norm": ("|g|", "{:.3f}"),
    "learning_rate": ("lr", "{:.2e}"),
    "sentences_per_second": ("", "{:,.0f} sentences/s"),
    "real_tokens_per_second": ("", "{:,.0f} tokens/s"),
    "padding_share": ("padding", "{:.1%}"),
    "peak_memory_gb": ("peak", "{:.2f} GB"),
}


# seconds of a log line's window by what they went to; those of an evaluation are in its own row
TRAINING, WAITING, CHECKPOINTS, EVALUATION = (
    "training_seconds",  # steps, the waiting for their batches included
    "waiting_seconds",
    "checkpoint_seconds",  # as far as training waited for them
    "evaluation_seconds",
)

_COUNTS = ("_steps", "_sentences", "_real_tokens", "_positions")


class Window:
    """Means over the steps since the last log line. Adding a step does not wait for the device."""

    def __init__(self) -> None:
        self._start()

    def _start(self) -> None:
        self._sums: list[Tensor] | None = None
        self._steps = 0
        self._sentences = self._real_tokens = self._positions = 0
        self._since = time.perf_counter()
        self._waited = self._checkpoints = 0.0

    def add(self, output: StepOutput, sentences: int, real_tokens: int, positions: int) -> None:
        """sentences: of the global batch; real_tokens and positions (padding included): of this rank."""
        values = [tensor.detach().float() for tensor in output]
        self._sums = values if self._sums is None else [a + b for a, b in zip(self._sums, values, strict=True)]
        self._steps += 1
        self._sentences += sentences
        self._real_tokens += real_tokens
        self._positions += positions

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time that is not training: evaluations and checkpoints do not count in the rates."""
        start = time.perf_counter()
        yield
        self._since += time.perf_counter() - start

    @contextmanager
    def checkpointing(self) -> Iterator[None]:
        """Within `paused`: time that a checkpoint takes."""
        start = time.perf_counter()
        yield
        self._checkpoints += time.perf_counter() - start

    def waiting(self, batches: Iterator[T]) -> Iterator[T]:
        """The same batches; the time until each is there is counted."""
        start = time.perf_counter()
        for batch in batches:
            self._waited += time.perf_counter() - start
            yield batch
            start = time.perf_counter()

    def state(self) -> list[dict[str, Any]]:
        """What a checkpoint keeps of a window that is not full, a rank an entry. Called on every rank.

        Without it the rows of a resumed run would be means over fewer steps.
        """
        sums = [tensor.tolist() for tensor in self._sums or []]
        counts = {name: getattr(self, name) for name in _COUNTS}
        return gather_objects({"sums": sums, **counts})

    def restore(self, state: Sequence[dict[str, Any]], device: torch.device) -> None:
        """Go on from `state`; a run with another number of ranks gives each the mean of all."""
        self._start()
        if not state or not state[0]["sums"]:
            return
        same = len(state) == world_size()
        sums = [torch.tensor([entry["sums"][i] for entry in state]) for i in range(len(state[0]["sums"]))]
        self._sums = [(entries[rank()] if same else entries.mean(0)).to(device) for entries in sums]
        for name in _COUNTS:
            values = [entry[name] for entry in state]
            setattr(self, name, values[rank()] if same else sum(values) // len(values))

    def begin_timing(self) -> None:
        """Training begins now: what was done before does not count in the rates."""
        self._since = time.perf_counter()

    @property
    def steps(self) -> int:
        """How many it holds."""
        return self._steps

    def finite(self) -> bool:
        """Whether every loss of the window was finite on every rank (waits for the device)."""
        return self._sums is None or bool(torch.isfinite(all_sum(self._sums[0])))

    def read(self) -> dict[str, float | None]:
        """The window's means over steps and ranks; starts a new window. Called on every rank.

        Shares and recalls are ratios of sums; None where there was nothing to count.
        """
        assert self._sums is not None
        means = all_mean(torch.cat([tensor.reshape(-1) for tensor in self._sums])) / self._steps
        device = means.device
        tokens = all_sum(torch.tensor([self._real_tokens, self._positions], dtype=torch.float64, device=device))
        peak = float(all_max(torch.tensor(peak_memory_gb(device), device=device)))
        loss, contrastive, rtd, positive, negative, real, replaced, right_replaced, right_kept = means.tolist()
        real_tokens, positions = tokens.tolist()
        seconds = time.perf_counter() - self._since
        row = {
            "loss": loss,
            "contrastive": contrastive,
            "rtd": rtd,
            "positive_cosine": positive,
            "negative_cosine": negative,
            "rtd_recall_replaced": _ratio(right_replaced, replaced),
            "rtd_recall_kept": _ratio(right_kept, real - replaced),
            "replaced_share": _ratio(replaced, real),
            "sentences_per_second": self._sentences / seconds,
            "real_tokens_per_second": real_tokens / seconds,
            "padding_share": 1 - real_tokens / positions,
            "peak_memory_gb": peak,
            TRAINING: seconds,
            WAITING: self._waited,
            CHECKPOINTS: self._checkpoints,
        }
        self._start()
        return row


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole > 0 else None


def peak_memory_gb(device: torch.device) -> float:
    """Peak memory of this process in GB (1e9 bytes): the device's allocator, or resident memory on a CPU."""
    if device.type == "cpu":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    return float(torch.get_device_module(device).max_memory_allocated(device)) / 1e9


def console_line(step: int, steps: int, row: dict[str, Any]) -> str:
    """One aligned line with units."""
    cells = [
        f"{label} {pattern.format(row[name])}".strip()
        for name, (label, pattern) in CONSOLE.items()
        if row.get(name) is not None
    ]
    return f"step {step:>{len(str(steps))}}/{steps}  " + "  ".join(cells)


class MetricsFile:
    """`metrics.jsonl`: one JSON object a line, each with its `step`.

    The file is kept open: when a later incarnation of the run replaces it, the rows of one that does not know yet go
    nowhere.

    Args:
        owned: whether the run is still this process's: else nothing is written.
    """

    def __init__(self, path: Path, owned: Callable[[], bool] = lambda: True) -> None:
        self.path, self._owned = path, owned
        self._file: TextIO | None = None

    def write(self, row: dict[str, Any]) -> None:
        """Append one row; numbers that are not finite become null, as JSON has no others."""
        if not self._owned():
            return
        clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
        if self._file is None:
            self._file = self.path.open("a", encoding="utf-8")
        self._file.write(json.dumps(clean) + "\n")
        self._file.flush()

    def rows(self) -> list[dict[str, Any]]:
        """All rows, oldest first; a last line cut short by a killed process is left out."""
        if not self.path.is_file():
            return []
        rows = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                break
        return rows

    def keep(self, wanted: Callable[[dict[str, Any]], bool]) -> None:
        """Drop the rows that a resumed run is going to write again."""
        if not self._owned():
            return
        if self._file is not None:
            self._file.close()
            self._file = None
        kept = [json.dumps(row) for row in self.rows() if wanted(row)]
        fresh = self.path.with_suffix(".tmp")
        fresh.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
        os.replace(fresh, self.path)
