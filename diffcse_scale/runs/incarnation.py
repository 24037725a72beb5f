"""Which process has a run: a run lives through several, one after another, when its job is requeued or resumed.

`incarnations.jsonl` has a line for each, which names the one that it comes after; the last of this chain owns the run.
Of several that come after the same one, the first line counts: so one of those that begin at once has the run, and all
know which, though their hosts share no locks. Where a node is cut off, its tasks go on although the scheduler has
started the job again elsewhere: the older incarnation finds that the last line is not its own and stops.
"""

from __future__ import annotations

import os
import socket
import time
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, Field

from diffcse_scale.foundation.locks import Lock
from diffcse_scale.foundation.objects import parse_json
from diffcse_scale.foundation.patience import patiently


class Incarnation(BaseModel):
    """One process's time with a run.

    Attributes:
        job: the scheduler's number of the job, None without a scheduler.
        restart: how often the scheduler has started that job again.
        step: the checkpoint it began from.
        began: seconds since the epoch.
        after: the token of the one that had the run before, empty if nobody had; None as earlier versions did not say.
    """

    model_config = ConfigDict(frozen=True)

    job: str | None = Field(default_factory=lambda: os.environ.get("SLURM_JOB_ID"))
    restart: int = Field(default_factory=lambda: int(os.environ.get("SLURM_RESTART_COUNT", "0")))
    host: str = Field(default_factory=lambda: os.environ.get("SLURMD_NODENAME") or socket.gethostname())
    process: int = Field(default_factory=os.getpid)
    token: str = Field(default_factory=lambda: uuid4().hex)
    began: float = Field(default_factory=time.time)
    step: int = 0
    after: str | None = None

    def succeeds(self, other: Incarnation) -> bool:
        """Whether this is the same job, started again later."""
        return self.job is not None and self.job == other.job and self.restart > other.restart

    def __str__(self) -> str:
        job = f"job {self.job} (restart {self.restart}), " if self.job else ""
        return f"{job}process {self.process} on {self.host}"


def incarnations(file: Path) -> list[Incarnation]:
    """All that have had the run, oldest first. A line cut short is left out, and one that came too late.

    Raises:
        OSError: the file cannot be read, also after a while.
    """

    def read() -> bytes:
        try:
            return file.read_bytes()
        except FileNotFoundError:
            return b""

    return _chain(patiently(read))


def _chain(content: bytes) -> list[Incarnation]:
    found: list[Incarnation] = []
    for line in content.decode(errors="replace").splitlines():
        with suppress(ValueError, TypeError):  # pydantic's error is a ValueError, too
            entry = Incarnation.model_validate({"token": "", **parse_json(line)})
            if entry.after in (None, found[-1].token if found else ""):
                found.append(entry)
    return found


class Ownership:
    """Whether `incarnation` still owns the run: it does from `begin` until a later one takes over. Every rank has one.

    Args:
        lock: the run's, for as long as this object lives; None where another process has it, or nobody can.
    """

    def __init__(self, file: Path, incarnation: Incarnation, lock: Lock | None = None) -> None:
        self._file, self.incarnation, self.lock = file, incarnation, lock
        self._seen = b""  # the file when it was read last

    def begin(self) -> bool:
        """Add the line; whether the run is this incarnation's now, and not that of another whose line came first.

        Raises:
            OSError: it cannot be written or read.
        """
        patiently(self._add)
        return self.lasts()

    def _add(self) -> None:
        # a line cut short by a full disk is ended first
        before = "" if not self._file.is_file() or self._file.read_bytes()[-1:] in (b"", b"\n") else "\n"
        with self._file.open("a", encoding="utf-8") as lines:
            lines.write(before + self.incarnation.model_dump_json() + "\n")
            lines.flush()
            os.fsync(lines.fileno())

    def lasts(self) -> bool:
        """Whether the run is still this incarnation's; cheap enough for every step.

        Raises:
            OSError: that cannot be said: the file cannot be read, also after a while, or is gone.
        """
        return patiently(self._look)

    def _look(self) -> bool:
        content = self._file.read_bytes()  # a network file system asks its server when a file is opened
        if content and content == self._seen:
            return True
        history = _chain(content)
        if not history:
            raise OSError(0, "It has lost the lines of the processes that had the run", str(self._file))
        if history[-1].token != self.incarnation.token:
            return False
        self._seen = content
        return True
