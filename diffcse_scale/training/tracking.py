"""`--track`: the hook that sends a run's metrics to trackers, each in its own thread; training never waits for them."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable, Mapping
from itertools import islice
from queue import Full, Queue
from threading import Thread
from typing import TYPE_CHECKING, Any

from diffcse_scale.distributed import is_main
from diffcse_scale.foundation.errors import one_line
from diffcse_scale.foundation.run_files import TRACKING
from diffcse_scale.foundation.secrets import masked
from diffcse_scale.foundation.strict_json import to_json
from diffcse_scale.runs.directory import RunDirectory
from diffcse_scale.training.hook import Hook
from diffcse_scale.training.trackers import PATIENCE, TRACKERS, About, Tracker

if TYPE_CHECKING:
    from diffcse_scale.training.trainer import Trainer

log = logging.getLogger(__name__)

OF_TEXT = ("first rows", "as tokens")  # rows of the start table with corpus text, which is not sent anywhere
WAITING = 10_000  # rows: a tracker that is so far behind is given up


class Tracking(Hook):
    """Sends all rows of metrics.jsonl to trackers, also those of an earlier process that a tracker has not received.

    Args:
        names: names in `TRACKERS`.
        start: the rows of the start table.
    """

    def __init__(self, names: Iterable[str], start: Mapping[str, str]) -> None:
        self._names, self._start = list(names), start
        self._lines: list[_Line] = []

    def on_start(self, trainer: Trainer) -> None:
        """Start the trackers, on the main rank only."""
        if not is_main():
            return
        recipe = {name: _masked(value) for name, value in flat(trainer.recipe.model_dump(mode="json")).items()}
        start = {name: masked(value) for name, value in self._start.items() if name not in OF_TEXT}
        about = About(trainer.run.path.resolve().name, recipe, start, trainer.step)
        rows = sum(1 for _ in trainer.run.metrics.rows())
        for name in self._names:
            tracker = TRACKERS[name](trainer.run.path / TRACKING / name)
            self._lines.append(_Line(name, tracker, about, trainer.run, rows))

    def on_row(self, trainer: Trainer, row: dict[str, Any]) -> None:
        """Queue the row for each tracker, without waiting."""
        for line in self._lines:
            line.put((trainer.step, numbers_of(row)))

    def on_end(self, trainer: Trainer, result: dict[str, Any]) -> None:
        """Queue the result, and give the trackers PATIENCE seconds to finish."""
        deadline = time.monotonic() + PATIENCE
        for line in self._lines:
            line.put(dict(result))
        for line in self._lines:
            line.wait(deadline)


class _Line(Thread):
    """The thread of one tracker. The first error is logged once and ends only this tracker.

    Args:
        earlier: number of rows that metrics.jsonl had before.
    """

    def __init__(self, name: str, tracker: Tracker, about: About, run: RunDirectory, earlier: int) -> None:
        super().__init__(name=f"tracker {name}", daemon=True)
        self._called, self._tracker, self._about, self._run, self._earlier = name, tracker, about, run, earlier
        self._queue: Queue[tuple[int, dict[str, float]] | dict[str, Any]] = Queue(WAITING)
        self._gone = False
        self.start()

    def put(self, item: tuple[int, dict[str, float]] | dict[str, Any]) -> None:
        """Queue the numbers of a step, or finally the result."""
        try:
            if not self._gone:
                self._queue.put_nowait(item)
        except Full:
            self._give_up(f"it does not answer, and {WAITING:,} rows wait for it")

    def wait(self, deadline: float) -> None:
        """Wait until everything is sent, or until the deadline."""
        self.join(max(0.0, deadline - time.monotonic()))
        if self.is_alive():
            self._give_up(f"it has not taken the last numbers within {PATIENCE} seconds")

    def run(self) -> None:
        """Send rows until the result has come."""
        try:
            if self._run.owned():
                self._tracker.begin(self._about)
            for row in islice(self._run.metrics.rows(), self._earlier):
                self._tell(row["step"], numbers_of(row))
            while isinstance(item := self._queue.get(), tuple):
                self._tell(*item)
            if self._run.owned():
                numbers = {f"result.{name}": value for name, value in numbers_of(flat(item)).items()}
                self._tracker.end(numbers, to_json(item, indent=1))
        except (Exception, SystemExit) as error:  # from any library; a tracker must not fail the run
            self._give_up(one_line(error).rstrip("."))

    def _tell(self, step: int, numbers: Mapping[str, float]) -> None:
        new = {name: value for name, value in numbers.items() if not self._tracker.has(name, step)}
        if new and self._run.owned():
            self._tracker.add(step, new)

    def _give_up(self, why: str) -> None:
        if not self._gone:
            log.warning(
                "Nothing more is sent to %s (%s). Training continues, and metrics.jsonl has everything.",
                self._called,
                why,
            )
        self._gone = True


def flat(section: Mapping[str, Any], place: str = "") -> dict[str, Any]:
    """Flatten nested objects into values by `section.field`.

    >>> flat({"a": {"b": 1}, "c": [2]})
    {'a.b': 1, 'c': [2]}
    """
    found: dict[str, Any] = {}
    for name, value in section.items():
        found |= flat(value, f"{place}{name}.") if isinstance(value, Mapping) else {f"{place}{name}": value}
    return found


def numbers_of(row: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers of a row, without its step."""
    return {
        name: float(value)
        for name, value in row.items()
        if name != "step" and isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }


def _masked(value: Any) -> Any:
    if isinstance(value, str):
        return masked(value)
    return list(map(_masked, value)) if isinstance(value, list) else value
