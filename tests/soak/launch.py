"""One launch of the toy run through the `deepspeed` launcher, its processes, and what its ranks have recorded."""

from __future__ import annotations

import contextlib
import math
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil

from diffcse_scale.rendezvous import free_port
from tests.soak.world import read_lines
from tests.support.launch import ROOT, environment

RANKS = 2
NODE_LAUNCHER = "deepspeed.launcher.launch"
# in the environment of every process of a launch, and of no other
MARK = "SOAK_LAUNCH"
LOOK = 0.003  # seconds between two looks at a run


class Launch:
    """`deepspeed --num_gpus 2 program.py --recipe ... --auto-resume`, started in a session of its own.

    Args:
        recipe: of the toy run.
        output: the run folder.
        records: an empty folder of this launch, for the log and for what the ranks record.
        options: more arguments of train.py.
        variables: more environment.
        pause: seconds that each step lasts longer.
    """

    def __init__(
        self,
        recipe: Path,
        output: Path,
        records: Path,
        *options: str,
        variables: Mapping[str, str] | None = None,
        pause: float = 0.0,
    ) -> None:
        self.records, self.mark, self.began = records, uuid4().hex, time.time()
        self._found: dict[str, psutil.Process] = {}
        records.mkdir(parents=True)
        command = [
            str(Path(sys.executable).parent / "deepspeed"),
            "--num_gpus",
            str(RANKS),
            "--master_port",
            str(free_port()),
        ]
        command += [str(Path(__file__).with_name("program.py")), "--recipe", str(recipe), "--output", str(output)]
        command += ["--deepspeed_config", str(ROOT / "ds_configs" / "zero2.json"), "--auto-resume", *options]
        own = {"SOAK_RECORD": str(records), "SOAK_PAUSE": str(pause), MARK: self.mark, **(variables or {})}
        with (records / "log.txt").open("w") as log:
            self.process = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**environment(), **own},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def log(self) -> str:
        """What it has printed."""
        return (self.records / "log.txt").read_text(errors="replace")

    def steps(self, rank: int = 0) -> list[dict[str, Any]]:
        """What `rank` has recorded of the steps that it has begun."""
        return read_lines(self.records / f"rank{rank}.jsonl")

    def begun(self, until: float = math.inf) -> int | None:
        """Steps begun `until` then, counted from the start of the run; None before the first of this launch."""
        lines = [line for rank in range(RANKS) for line in self.steps(rank)]
        steps = [line["step"] + 1 for line in lines if line["began"] <= until]
        return max(steps, default=None)

    def processes(self) -> list[psutil.Process]:
        """All that live, the orphans included."""
        return [process for process in psutil.process_iter() if _variable(process, MARK) == self.mark]

    def find(self, name: str) -> psutil.Process | None:
        """The process called "main launcher", "node launcher", "rank 0" or "rank 1", once it is there."""
        if name not in self._found:
            self._found.update({_name(process): process for process in self.processes()})
        return self._found.get(name)

    def signal(self, number: signal.Signals) -> None:
        """To all processes."""
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def ended(self) -> bool:
        """Whether the main launcher has."""
        return self.process.poll() is not None

    def wait_until(self, happens: Callable[[], Any], seconds: float) -> bool:
        """Whether it happens before the main launcher ends and before `seconds` are over."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if happens():
                return True
            if self.ended():
                return False
            time.sleep(LOOK)
        return False

    def survivors(self, seconds: float) -> list[str]:
        """Names of the processes that live `seconds` from now; returns when there are none. Ends those."""
        end = time.monotonic() + seconds
        while (alive := self.processes()) and time.monotonic() < end:
            self.ended()  # reaps it
            time.sleep(0.1)
        names = [_name(process) for process in alive]
        self.signal(signal.SIGKILL)
        self.process.wait()
        return names


def _variable(process: psutil.Process, name: str) -> str | None:
    """A variable of another process's environment; None for one that is not ours or has ended."""
    try:
        return process.environ().get(name) if process.status() != psutil.STATUS_ZOMBIE else None
    except (psutil.Error, OSError):
        return None


def _name(process: psutil.Process) -> str:
    try:
        words, parent = process.cmdline(), process.parent()
        if NODE_LAUNCHER in words:
            return "node launcher"
        if any(Path(word).name == "deepspeed" for word in words[:2]):
            return "main launcher"
        child_of_launcher = parent is not None and NODE_LAUNCHER in parent.cmdline()
    except psutil.Error:
        return "ended"
    number = _variable(process, "RANK")
    return f"rank {number}" if child_of_launcher else f"child of rank {number}" if number else "child of a launcher"
