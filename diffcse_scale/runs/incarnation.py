"""Which process has a run: a run lives through several, one after another, when its job is requeued or resumed.

`incarnations.jsonl` has a line for each; the last one owns the run. Where a node is cut off, its tasks go on although
the scheduler has started the job again elsewhere: the older incarnation finds that the last line is not its own and
stops.
"""

from __future__ import annotations

import os
import socket
import time
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, Field

from diffcse_scale.foundation.objects import parse_json


class Incarnation(BaseModel):
    """One process's time with a run.

    Attributes:
        job: the scheduler's number of the job, None without a scheduler.
        restart: how often the scheduler has started that job again.
        step: the checkpoint it began from.
        began: seconds since the epoch.
    """

    model_config = ConfigDict(frozen=True)

    job: str | None = Field(default_factory=lambda: os.environ.get("SLURM_JOB_ID"))
    restart: int = Field(default_factory=lambda: int(os.environ.get("SLURM_RESTART_COUNT", "0")))
    host: str = Field(default_factory=lambda: os.environ.get("SLURMD_NODENAME") or socket.gethostname())
    process: int = Field(default_factory=os.getpid)
    token: str = Field(default_factory=lambda: uuid4().hex)
    began: float = Field(default_factory=time.time)
    step: int = 0

    def succeeds(self, other: Incarnation) -> bool:
        """Whether this is the same job, started again later."""
        return self.job is not None and self.job == other.job and self.restart > other.restart

    def __str__(self) -> str:
        job = f"job {self.job} (restart {self.restart}), " if self.job else ""
        return f"{job}process {self.process} on {self.host}"


def incarnations(file: Path) -> list[Incarnation]:
    """All that the file records, oldest first; a line cut short is left out."""
    found: list[Incarnation] = []
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return found
    for line in lines:
        with suppress(ValueError):  # which pydantic's error is too
            found.append(Incarnation.model_validate(parse_json(line)))
    return found


class Ownership:
    """That `incarnation` has the run: from its making on, until a later one is added to the file."""

    def __init__(self, file: Path, incarnation: Incarnation) -> None:
        self._file, self._incarnation = file, incarnation
        # a line cut short by a full disk is ended first
        before = "" if not file.is_file() or file.read_bytes()[-1:] in (b"", b"\n") else "\n"
        with file.open("a", encoding="utf-8") as lines:
            lines.write(before + incarnation.model_dump_json() + "\n")
            lines.flush()
            os.fsync(lines.fileno())
            self._size = os.fstat(lines.fileno()).st_size

    def lasts(self) -> bool:
        """Whether the last line is still this incarnation's; cheap enough for every step."""
        try:
            size = self._file.stat().st_size
        except OSError:
            return False
        if size != self._size:
            history = incarnations(self._file)
            if not history or history[-1].token != self._incarnation.token:
                return False
            self._size = size
        return True
