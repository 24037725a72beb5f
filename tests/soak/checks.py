"""What must be true of a run after each round; every function yields a sentence for what is not."""

from __future__ import annotations

import errno
import json
import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file

from tests.soak.launch import RANKS, Launch
from tests.soak.world import CHECKPOINT_EVERY, STEPS, Run
from tests.support.launch import TIMINGS

TOLERANCE = 1e-5


class Truth(NamedTuple):
    """The uninterrupted run.

    Attributes:
        rows: of metrics.jsonl, by step and whether it is of an evaluation.
        steps: what each rank trained on in each step.
        weights: of the exported model.
    """

    rows: dict[tuple[int, bool], dict[str, Any]]
    steps: dict[tuple[int, int], tuple[Any, str]]
    result: dict[str, Any]
    weights: dict[str, torch.Tensor]

    @classmethod
    def of(cls, run: Run, launch: Launch) -> Truth:
        """What a finished run and its only launch have left."""
        steps = {
            (rank, line["step"]): (line["rows"], line["tokens"]) for rank in range(RANKS) for line in launch.steps(rank)
        }
        result = run.result()
        assert result is not None
        return cls({key(row): row for row in run.rows()}, steps, result, weights(run.path))


def key(row: dict[str, Any]) -> tuple[int, bool]:
    """What a row of metrics.jsonl is the only one of."""
    return row["step"], "dev_spearman" in row


def weights(run: Path) -> dict[str, torch.Tensor]:
    """Of a finished run's model."""
    return load_file(run / "model" / "model.safetensors")


def deviation(one: dict[str, Any], other: dict[str, Any]) -> float:
    """Largest difference of two rows' numbers, relative where they are above 1; timings left out."""
    numbers = [(one[name], other[name]) for name in other if name not in TIMINGS]
    return max(abs(a - b) / max(1.0, abs(b)) if a is not None and b is not None else float(a != b) for a, b in numbers)


def largest_deviation(run: Run, truth: Truth) -> float:
    """Of all rows that a run has by now."""
    return max((deviation(row, truth.rows[key(row)]) for row in run.rows()), default=0.0)


def steps_continue(launch: Launch, resumed: int, truth: Truth) -> Iterator[str]:
    """A launch begins where its checkpoint is, leaves no step out, and meets the sentences of the uninterrupted run."""
    for rank in range(RANKS):
        lines = launch.steps(rank)
        numbers = [line["step"] for line in lines]
        if numbers and numbers[0] != resumed:
            yield f"rank {rank} began after step {numbers[0]}, the newest checkpoint was that of step {resumed}"
        if numbers != list(range(numbers[0], numbers[0] + len(numbers)) if numbers else []):
            yield f"rank {rank} trained the steps {numbers}"
        for line in lines:
            if (line["rows"], line["tokens"]) != truth.steps[rank, line["step"]]:
                yield f"rank {rank} had other sentences in step {line['step'] + 1}"


def work_is_kept(begun: int | None, before: int, newest: int, half_written: list[int], graceful: bool) -> Iterator[str]:
    """No more is lost than since the checkpoint that was due last, or since the one before if that was being written.

    Args:
        begun: steps begun, None if the launch did not come so far; it went on from `before`.
        newest: the newest checkpoint now.
        half_written: those that were being written.
        graceful: nothing at all may be lost.
    """
    if begun is None:
        expected = before
    elif graceful:
        expected = begun
    else:
        expected = max(before, (begun - 1) // CHECKPOINT_EVERY * CHECKPOINT_EVERY)
        if expected in half_written:
            expected = max(before, expected - CHECKPOINT_EVERY)
    if newest < expected or (begun is not None and newest > begun):
        yield f"{begun} steps were begun, and the newest checkpoint is that of step {newest} instead of {expected}"


def folder_is_sound(run: Run, truth: Truth) -> Iterator[str]:
    """Every checkpoint with its final name is whole, and every step is written once, with the uninterrupted losses."""
    yield from run.damages()
    for (step, evaluation), count in Counter(map(key, run.rows())).items():
        if count > 1:
            yield f"metrics.jsonl has {count} rows of {'the evaluation after ' if evaluation else ''}step {step}"
    if (off := largest_deviation(run, truth)) > TOLERANCE:
        yield f"a number in metrics.jsonl is off by {off:.2g}"


def same_end(run: Run, truth: Truth) -> Iterator[str]:
    """A finished run has all rows, the result and the weights of the uninterrupted one."""
    if list(map(key, run.rows())) != list(truth.rows):
        yield f"metrics.jsonl does not have the rows of {STEPS} steps in their order"
    result = run.result()
    if result is None or result["best"]["step"] != truth.result["best"]["step"] or result.keys() != truth.result.keys():
        yield f"result.json says {result}"
        return
    flat = ({**one, **one["best"], **one["before"], "best": None, "before": None} for one in (result, truth.result))
    if (off := deviation(*flat)) > TOLERANCE:
        yield f"result.json is off by {off:.2g}"
    off = max(float((tensor - truth.weights[name]).abs().max()) for name, tensor in weights(run.path).items())
    if off > TOLERANCE:
        yield f"the exported weights are off by {off:.2g}"


def nothing_left(launch: Launch, seconds: float) -> Iterator[str]:
    """All processes of a launch have ended within `seconds` from now."""
    if names := launch.survivors(seconds):
        yield f"after {seconds:.0f} s there are left: {', '.join(sorted(names))}"


def stopped_at_once(older: Launch, since: float) -> Iterator[str]:
    """An incarnation that was taken over begins two more steps at most: it looks after one, acts after the next."""
    for rank in range(RANKS):
        if (more := sum(line["began"] > since for line in older.steps(rank))) > 2:
            yield f"rank {rank} of the older incarnation has begun {more} steps since the newer has the run"


def hang_is_explained(run: Run, launch: Launch, silent: str) -> Iterator[str]:
    """The log names the rank that was silent, and the stacks of the one that waited for it are there."""
    if not re.search(rf"{silent.capitalize()} on \S+ has not responded for", launch.log()):
        yield f"the log does not name {silent}"
    if not any(file.stat().st_mtime > launch.began for file in (run.path / "hang").glob("rank-*.txt")):
        yield "there are no stacks"


def failure_is_told(run: Run, error: str) -> Iterator[str]:
    """`status.json` has the error of the disk, and not what another rank said of it."""
    status = json.loads((run.path / "status.json").read_text())
    if status["state"] != "failed" or os.strerror(getattr(errno, error)).lower() not in status["message"].lower():
        yield f"status.json says {status['state']}: {status.get('message')}"
