"""`status.json`: the state of a run at its last sign of life, for people and programs."""

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

# seconds between two writes: often enough to watch a run live, rarely enough for a network file system
HEARTBEAT = 1.0
# seconds after which a run that should be working but has not written may be dead
OLD = 120.0
ENDED = ("finished", "stopped", "failed")


class StatusFile:
    """`status.json`, written by the main rank and replaced atomically, so that a reader never sees half of it.

    Args:
        path: None to write nothing, as on all ranks but the main one.
        owned: whether this process still owns the run; if not, nothing is written either.
        facts: facts known from the start: `job`, `restarts`, `steps`, `incarnation`, ...
    """

    def __init__(self, path: Path | None, owned: Callable[[], bool] = lambda: True, **facts: Any) -> None:
        self._path, self._owned, self._facts, self._last = path, owned, dict(facts), 0.0
        self._fresh: Path | None = None  # the temporary file; None for the usual name

    @property
    def facts(self) -> dict[str, Any]:
        """What is known of the run."""
        return dict(self._facts)

    @property
    def failure(self) -> tuple[str, int] | None:
        """Message and exit code of a run that has failed; else None."""
        facts = self._facts
        return (facts["message"], facts["exit_code"]) if facts.get("state") == "failed" else None

    @classmethod
    def found(cls, path: Path, owned: Callable[[], bool] = lambda: True) -> StatusFile:
        """Open the status that another process has written, to add to it."""
        try:
            found = read_object(path)
        except (OSError, InputError):
            found = {}
        status = cls(path, owned)
        status._fresh = path.with_name(f"{path.name}.{os.getpid()}{TEMPORARY}")  # the main rank may be writing too
        status._facts.update(found)
        return status

    def update(self, *, now: bool = False, **facts: Any) -> None:
        """Merge `facts` into the known ones, and write them unless the last write was less than `HEARTBEAT` ago.

        A heartbeat that cannot be written does not stop a run; more important writes will report the problem.
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
                # a full disk has no room for a temporary file, and this is the run's last message
                with self._path.open("r+", encoding="utf-8") as file:
                    file.write(text)
                    file.truncate()


def gave_up(run: str, message: str) -> None:
    """Record that the run's job does not requeue itself; its last process only recorded that it stopped."""
    status, code = StatusFile.found(Path(run) / STATUS), ExitCode.NO_PROGRESS
    status.update(now=True, state=code.state, message=message, exit_code=code)


def read_status(run: Path) -> dict[str, Any]:
    """The content of a run's `status.json` and the `seconds_since` its last sign of life, or that its job waits.

    Raises:
        InputError: there is neither the file nor a waiting job, or the file cannot be read.
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
    """The time by the clock of the folder's file system, which stamps a run's files; this machine's may differ."""
    try:
        with tempfile.TemporaryFile(dir=folder) as probe:
            return os.fstat(probe.fileno()).st_mtime
    except OSError:  # the folder is not writable
        return time.time()


def status_line(status: dict[str, Any]) -> str:
    """Format a status as one line for people."""
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
