"""How the time of a run was spent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from diffcse_scale.runs.metric_table import CHECKPOINTS, EVALUATION, TRAINING, WAITING
from diffcse_scale.runs.read import Run


@dataclass(frozen=True)
class Time:
    """How a run's time was spent; `parts` are name, duration as text, and share of the total."""

    run: int
    parts: list[tuple[str, str, float]]
    total: str
    whole: str


def times(runs: Sequence[Run]) -> list[Time]:
    """Times of the runs that recorded them."""
    found = [_time(number, run) for number, run in enumerate(runs)]
    return [time for time in found if time is not None]


def _time(number: int, run: Run) -> Time | None:
    def total(name: str) -> float:
        return float(run.series(name).known.values.sum())

    if TRAINING not in run.metrics:
        return None
    seconds = {
        "computing": total(TRAINING) - total(WAITING),
        "waiting for data": total(WAITING),
        "evaluation": total(EVALUATION),
        "checkpoints": total(CHECKPOINTS),
    }
    whole = sum(seconds.values())
    if whole <= 0:
        return None
    parts = [(name, duration(value), value / whole) for name, value in seconds.items()]
    # for an interrupted run it would include the pause
    once = run.finished and len(run.incarnations) == 1 and run.status.get("updated") is not None
    ended = duration(run.status["updated"] - run.incarnations[0].began) if once else ""
    return Time(number, parts, duration(whole), ended)


def duration(seconds: float) -> str:
    """A readable duration: 0.4 s, 41 s, 3 min 20 s, 5 h 02 min."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours:,} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
