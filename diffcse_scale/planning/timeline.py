"""Events that wait for each other and for their resource, and the critical path through them."""

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
    because: Event | None  # the event that it waited for; None if it waited for none


class Timeline:
    """Events on resources. Each resource runs its events one after another, in the order in which they were added."""

    def __init__(self) -> None:
        self._last: dict[str, Event] = {}

    def add(self, kind: str, seconds: float, on: str, after: Sequence[Event | None]) -> Event:
        """Add an event. It starts as soon as all of `after` have ended and the resource is free."""
        waited = [event for event in (self._last.get(on), *after) if event is not None]
        last = max(waited, key=lambda event: event.end, default=None)
        begin = 0.0 if last is None else last.end
        self._last[on] = Event(kind, begin, begin + seconds, last)
        return self._last[on]


def critical(event: Event, since: float) -> dict[str, float]:
    """Seconds by kind along the critical path that ends with `event`, counted from the time `since`.

    Events beside the path are not counted, because shortening them alone would not shorten the step.
    """
    seconds: dict[str, float] = defaultdict(float)
    at: Event | None = event
    while at is not None and at.end > since:
        seconds[at.kind] += at.end - max(at.begin, since)
        at = at.because
    return dict(seconds)
