"""The contract: exit 0 and right, or exit 2 and one sentence; nothing overwritten; within time and memory.

A case runs in a worker process that has loaded the libraries, one after the other; a worker that goes beyond the limits
is ended, and the next case gets a new one.
"""

from __future__ import annotations

import importlib
import io
import multiprocessing
import os
import sys
import tempfile
import time
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import psutil

from tests.fuzz.case import Act, Answer, Case, Right
from tests.support import forks
from tests.support.files import write_files

PROCESSOR_SECONDS = 20.0
SECONDS = 120.0  # whatever else this machine does
MEMORY = 600 * 2**20  # bytes more than before the case
LONGEST = 1_500  # characters of a sentence to a user: names and values are cut
MISTAKE = 2


class Verdict(NamedTuple):
    """Whether a case was accepted, and what its answer broke; empty if it kept the contract."""

    accepted: bool
    problem: str


def judge(act: Act, right: Right, case: Case) -> Verdict:
    """What an answer in this process does to the contract."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        os.chdir(folder)
        os.environ["DIFFCSE_CACHE"] = str(Path(folder) / "cache")
        write_files(Path(), case.files)
        before = _forget_peak()
        sys.stdin = io.TextIOWrapper(io.BytesIO(case.stdin), encoding="utf-8", errors="surrogateescape")
        accepted = False
        try:
            answer = act(case)
            accepted, problem = answer.code == 0, kept(right, case, answer)
        except BaseException as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            problem = f"{type(error).__name__} at {Path(where.filename).name}:{where.lineno}: {str(error)[:300]}"
        grown = _peak() - before
        if not problem and grown > MEMORY:
            problem = f"took {grown / 2**20:.0f} MiB"
        os.chdir("/")
        return Verdict(accepted, problem)


def kept(right: Right, case: Case, answer: Answer) -> str:
    """What is wrong with an answer, in the case's folder, which has its files; empty if nothing is."""
    for name, content in case.files.items():
        if not Path(name).is_file() or Path(name).read_bytes() != content:
            return f"{name} was overwritten"
    if answer.code == 0:
        return right(case, answer)
    if answer.code != MISTAKE:
        return f"exit code {answer.code}: {answer.err[-300:]}"
    sentences = [line for line in answer.err.splitlines() if line.startswith("error: ")]
    if "Traceback" in answer.err or (len(sentences) != 1 and "Usage: " not in answer.err):
        return f"no sentence: {answer.err[-300:]!r}"
    if sentences and len(sentences[0]) > LONGEST:
        return f"a sentence of {len(sentences[0])} characters: {sentences[0][:200]}"
    return ""


class Worker:
    """A process that judges cases within the limits."""

    def __init__(self) -> None:
        self._process: multiprocessing.process.BaseProcess | None = None
        self._connection: Connection | None = None

    def judge(self, act: Act, right: Right, case: Case) -> Verdict:
        """As `judge`; a worker that does not answer in time, or dies, breaks the contract."""
        if self._process is None:
            self._start(act.__module__)
        assert self._connection is not None and self._process is not None
        try:
            self._connection.send((act, right, case))
            if self._answers(psutil.Process(self._process.pid)):
                verdict: Verdict = self._connection.recv()
                return verdict
            problem = "no answer within the time"
        except (EOFError, ConnectionError, psutil.NoSuchProcess):
            self._process.join()
            problem = f"the process ended with {self._process.exitcode}"
        self.close()
        return Verdict(False, problem)

    def close(self) -> None:
        """End the process, whatever it does."""
        if self._process is not None and self._connection is not None:
            self._connection.close()  # which ends one that waits for a case
            self._process.join(2)
            self._process.kill()
            self._process.join()
        self._process = None

    def _start(self, module: str) -> None:
        forks.start_server()
        context = multiprocessing.get_context(forks.METHOD)
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, dict(os.environ), module), daemon=True)
        self._process.start()
        theirs.close()
        self._connection.recv()  # it has loaded what it needs

    def _answers(self, process: psutil.Process) -> bool:
        assert self._connection is not None
        began, used = time.monotonic(), _processor_seconds(process)
        while not self._connection.poll(0.2):
            if time.monotonic() - began > SECONDS or _processor_seconds(process) - used > PROCESSOR_SECONDS:
                return False
        return True


def _processor_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _serve(connection: Connection, environment: dict[str, str], module: str) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.setsid()
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (1, 2):  # what libraries print past Python
        os.dup2(nothing, descriptor)
    importlib.import_module(module)  # and with it most of what takes long
    connection.send("ready")
    while True:
        try:
            act, right, case = connection.recv()
        except EOFError:
            return
        connection.send(judge(act, right, case))


def _forget_peak() -> int:
    """Let the peak of this process's memory begin anew; returns its memory now, in bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    return _peak()


def _peak() -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return 1024 * int(line.split()[1])
