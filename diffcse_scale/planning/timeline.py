"""Events that wait for each other and for what they run on, and the chain of them that makes a step so long."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, eq=False)
class Event:
    """Something that took time."""

    kind: str
    begin: float
    end: float
    because: Event | None  # whose end it waited for; None if for none


class Timeline:
    """Events on resources that do one thing after another, in the order in which they are asked."""

    def __init__(self) -> None:
        self._last: dict[str, Event] = {}

    def add(self, kind: str, seconds: float, on: str, after: Sequence[Event | None]) -> Event:
        """An event as early as all of `after` and the resource allow."""
        waited = [event for event in (self._last.get(on), *after) if event is not None]
        last = max(waited, key=lambda event: event.end, default=None)
        begin = 0.0 if last is None else last.end
        self._last[on] = Event(kind, begin, begin + seconds, last)
        return self._last[on]


def critical(event: Event, since: float) -> dict[str, float]:
    """Seconds by kind, along the chain of events that waited for each other until `event`, from the time `since` on.

    What ran beside it is not in it: shortening that alone would not shorten the step.
    """
    seconds: dict[str, float] = defaultdict(float)
    at: Event | None = event
    while at is not None and at.end > since:
        seconds[at.kind] += at.end - max(at.begin, since)
        at = at.because
    return dict(seconds)
