"""`status.json`: where a run is, for people and for programs, as of its last sign of life."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from diffcse_scale.foundation.durable import TEMPORARY, replacing
from diffcse_scale.foundation.errors import InputError
from diffcse_scale.foundation.exit_codes import ExitCode
from diffcse_scale.foundation.objects import read_object
from diffcse_scale.foundation.run_files import STATUS
from diffcse_scale.foundation.strict_json import to_json
from diffcse_scale.runs.queued import queued
from diffcse_scale.runs.records import Status

# seconds between two writings: often enough to see a run live, rarely enough for a network file system
HEARTBEAT = 1.0
# a run that is at work and has not written for so long (seconds) may be dead
OLD = 120.0
ENDED = ("finished", "stopped", "failed")


class StatusFile:
    """`status.json`, written by the main rank and replaced atomically, so that a reader never sees half of it.

    Args:
        path: None writes nothing, as on all ranks but the main one.
        owned: whether the run is still this process's: else nothing is written either.
        facts: what is known from the start: `job`, `restarts`, `steps`, `incarnation`, ...
    """

    def __init__(self, path: Path | None, owned: Callable[[], bool] = lambda: True, **facts: Any) -> None:
        self._path, self._owned, self._facts, self._last = path, owned, dict(facts), 0.0
        self._fresh: Path | None = None  # where it is written before it takes its place; None for the usual name

    @property
    def failure(self) -> tuple[str, int] | None:
        """Message and exit code of a run that has failed."""
        facts = self._facts
        return (facts["message"], facts["exit_code"]) if facts.get("state") == "failed" else None

    @classmethod
    def found(cls, path: Path, owned: Callable[[], bool] = lambda: True) -> StatusFile:
        """To add to what another process has written."""
        try:
            found = read_object(path)
        except (OSError, InputError):
            found = {}
        status = cls(path, owned)
        status._fresh = path.with_name(f"{path.name}.{os.getpid()}{TEMPORARY}")  # the main rank may be writing, too
        status._facts.update(found)
        return status

    def update(self, *, now: bool = False, **facts: Any) -> None:
        """Merge `facts` into what is known, and write it unless that was done less than `HEARTBEAT` ago.

        A heartbeat that cannot be written does not stop a run: what matters more will say so.
        """
        if self._path is None:
            return
        changed = facts.get("state", self._facts.get("state")) != self._facts.get("state")
        self._facts.update(facts)
        if not (now or changed or time.monotonic() - self._last >= HEARTBEAT):
            return
        self._last = time.monotonic()
        text = to_json({**self._facts, "updated": time.time()}) + "\n"
        with contextlib.suppress(OSError):
            if not self._owned():
                return
            try:
                with replacing(self._path, durably=False, fresh=self._fresh) as file:
                    file.write(text)
            except OSError:
                if self._facts.get("state") not in ENDED:
                    raise
                # on a full disk there is no room for a second file, and these are the last words
                with self._path.open("r+", encoding="utf-8") as file:
                    file.write(text)
                    file.truncate()


def gave_up(run: str, message: str) -> None:
    """Say that the run's job does not queue itself again: its last process has said no more than that it stopped."""
    status, code = StatusFile.found(Path(run) / STATUS), ExitCode.NO_PROGRESS
    status.update(now=True, state=code.state, message=message, exit_code=code)


def read_status(run: Path) -> dict[str, Any]:
    """What `status.json` of a run says, with `seconds_since` its last sign of life; or that its job waits.

    Raises:
        InputError: there is none and no job, or it cannot be read.
    """
    if not (run / STATUS).is_file():
        if waiting := queued(run):
            return {**waiting, "seconds_since": 0.0}
        raise InputError(f"{run} has no {STATUS}; give the folder of a run.")
    status = read_object(run / STATUS, Status)
    if status.get("state") is None or status.get("updated") is None:
        raise InputError(f"{run / STATUS} is not what a run writes: it has no state; give the folder of a run.")
    return {**status, "seconds_since": max(0.0, _clock_of(run) - (run / STATUS).stat().st_mtime)}


def _clock_of(folder: Path) -> float:
    """The time by the folder's file system, which stamps what a run writes; this machine's may be wrong."""
    try:
        with tempfile.TemporaryFile(dir=folder) as probe:
            return os.fstat(probe.fileno()).st_mtime
    except OSError:  # nothing can be written there
        return time.time()


def status_line(status: dict[str, Any]) -> str:
    """One line for people."""
    parts = [str(status["state"]), f"step {status.get('step') or 0} of {status.get('steps') or '?'}"]
    if rate := status.get("sentences_per_second"):
        parts.append(f"{rate:,.0f} sentences/s")
    if (left := status.get("seconds_left")) is not None and status["state"] not in ENDED:
        parts.append(f"{_duration(left)} left")
    parts.append(f"last checkpoint: {status.get('last_checkpoint') or 'none'}")
    if restarts := status.get("restarts"):
        parts.append(f"restarts: {restarts}")
    if status.get("job"):
        parts.append(f"job {status['job']}")
    if status["state"] not in ENDED and status["seconds_since"] > OLD:
        parts.append(f"NO SIGN OF LIFE for {_duration(status['seconds_since'])}")
    if status.get("message"):
        parts.append(str(status["message"]))
    return "; ".join(parts)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"
