"""Which process owns a run. A run has several, one after another, when its job is requeued or resumed.

`incarnations.jsonl` has a line for each process, which names its predecessor. The last one in this chain owns the run.
If several lines name the same predecessor, the first line counts. So if several processes begin at once, one owns the
run and all know which, even if their hosts share no locks. If a node is cut off, its tasks go on although the scheduler
has started the job again elsewhere. The older incarnation then finds that the last line is not its own, and stops.
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
    """A process that owns a run for some time.

    Attributes:
        job: the scheduler's number of the job; None without a scheduler.
        restart: how often the scheduler has restarted that job.
        step: the step of the checkpoint that it began from.
        began: seconds since the epoch.
        after: the token of the previous owner, empty for the first one; None in lines of earlier versions.
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
        """Whether this is a later restart of the same job."""
        return self.job is not None and self.job == other.job and self.restart > other.restart

    def __str__(self) -> str:
        job = f"job {self.job} (restart {self.restart}), " if self.job else ""
        return f"{job}process {self.process} on {self.host}"


def incarnations(file: Path) -> list[Incarnation]:
    """All processes that have owned the run, oldest first. Truncated lines and lines that came too late are left out.

    Raises:
        OSError: the file cannot be read, even after retries.
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
        with suppress(ValueError, TypeError):  # pydantic's error is a ValueError too
            entry = Incarnation.model_validate({"token": "", **parse_json(line)})
            if entry.after in (None, found[-1].token if found else ""):
                found.append(entry)
    return found


class Ownership:
    """Tells whether `incarnation` still owns the run: from `begin` until a later one takes over. Every rank has one.

    Args:
        lock: the run's lock, held as long as this object lives; None if another process has it, or nobody can.
    """

    def __init__(self, file: Path, incarnation: Incarnation, lock: Lock | None = None) -> None:
        self._file, self.incarnation, self.lock = file, incarnation, lock
        self._seen = b""  # the file's content when it was last read

    def begin(self) -> bool:
        """Append this incarnation's line. False if another one's line came first, so that it owns the run.

        Raises:
            OSError: the file cannot be written or read.
        """
        patiently(self._add)
        return self.lasts()

    def _add(self) -> None:
        # first end a line that a full disk has truncated
        before = "" if not self._file.is_file() or self._file.read_bytes()[-1:] in (b"", b"\n") else "\n"
        with self._file.open("a", encoding="utf-8") as lines:
            lines.write(before + self.incarnation.model_dump_json() + "\n")
            lines.flush()
            os.fsync(lines.fileno())

    def lasts(self) -> bool:
        """Whether this incarnation still owns the run; cheap enough for every step.

        Raises:
            OSError: it is not known, because the file is gone or cannot be read, even after retries.
        """
        return patiently(self._look)

    def _look(self) -> bool:
        content = self._file.read_bytes()  # opening the file makes a network file system ask its server
        if content and content == self._seen:
            return True
        history = _chain(content)
        if not history:
            raise OSError(0, "It has lost the lines of the processes that had the run", str(self._file))
        if history[-1].token != self.incarnation.token:
            return False
        self._seen = content
        return True
