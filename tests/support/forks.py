"""Processes of a test, forked from a server that has the large libraries loaded: importing them takes a rank seconds.

The server is multiprocessing's own, one a pytest process, started by the first test that needs it. It holds nothing of
this project, so that a fork reads the environment and looks at its parents as a fresh process would.
"""

from __future__ import annotations

import atexit
import gc
import multiprocessing
import os
import pickle
import runpy
import signal
import sys
import time
from collections.abc import Callable, Mapping
from multiprocessing import connection, forkserver
from pathlib import Path
from subprocess import TimeoutExpired
from typing import Any

from tests.support.devices import ON_GPU

# a GPU cannot be used by a fork of a process that has asked for it, and a library may do that as it is imported
METHOD = "spawn" if ON_GPU else "forkserver"
PRELOADED = [
    *("torch", "torch.distributed.optim", "torch._dynamo", "deepspeed", "deepspeed.runtime.zero.stage_1_and_2"),
    *("deepspeed.runtime.zero.stage3", "deepspeed.runtime.engine", "deepspeed.ops.adam", "transformers"),
    *("deepspeed.runtime.zero.muon.muon_optimizer", "matplotlib.figure", "matplotlib.backends.backend_agg"),
    *("transformers.models.auto.modeling_auto", "transformers.models.bert.modeling_bert", "tokenizers", "datasets"),
    *("safetensors.torch", "scipy.stats", "numpy.testing", "pandas", "pyarrow.parquet", "fsspec", "peft", "psutil"),
    *("pydantic", "yaml", "typer", "rich.console", "matplotlib.pyplot", "pytest", "setuptools", "packaging.markers"),
]


def start_server() -> None:
    """Start the server, unless it runs. Whoever starts one first in a process decides what it has loaded."""
    if METHOD == "spawn":
        return
    multiprocessing.set_forkserver_preload(PRELOADED)
    forkserver.ensure_running()


def spawn(work: Callable[..., Any], args: tuple[Any, ...] = (), nprocs: int = 1) -> None:
    """What `torch.multiprocessing.spawn` does, on forks: for the package's own workers."""
    from torch.multiprocessing import start_processes

    start_server()
    start_processes(work, args, nprocs, start_method=METHOD)


class Fork:
    """A function in a process of its own, with the words of `subprocess.Popen`.

    Args:
        output: where stdout and stderr go; None: where the server's go.
        environment: its variables, and no others (default: this process's).
        cwd: its folder (default: this process's).
    """

    def __init__(
        self,
        work: Callable[..., Any],
        *arguments: Any,
        output: Path | None = None,
        environment: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> None:
        start_server()
        place = (dict(environment or os.environ), str(cwd or Path.cwd()), str(output) if output else None)
        # pickled by itself: what unpickling imports must find its environment
        job = pickle.dumps((work, arguments))
        self._process = multiprocessing.get_context(METHOD).Process(target=_begin, args=(*place, job))
        self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def sentinel(self) -> int:
        """What `multiprocessing.connection.wait` waits for."""
        return self._process.sentinel

    def poll(self) -> int | None:
        """Its exit code, or minus the signal that ended it, if it has ended."""
        return self._process.exitcode

    def wait(self, seconds: float | None = None) -> int:
        """The same when it has ended."""
        self._process.join(seconds)
        if self._process.exitcode is None:
            raise TimeoutExpired(f"process {self.pid}", seconds or 0)
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        """To a process that has not ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it, whatever state it is in."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)


def wait_for_all(forks: list[Fork], seconds: float = 600) -> int:
    """0, or the exit code of the first that fails: it ends the others, as the `deepspeed` launcher does."""
    deadline = time.monotonic() + seconds
    running = list(forks)
    try:
        while running:
            connection.wait([fork.sentinel for fork in running], max(0, deadline - time.monotonic()))
            if failed := [fork for fork in running if fork.poll()]:
                return failed[0].wait()
            running = [fork for fork in running if fork.poll() is None]
            if running and time.monotonic() > deadline:
                raise TimeoutExpired(f"processes {[fork.pid for fork in running]}", seconds)
        return 0
    finally:
        for fork in running:
            fork.kill()
            fork.wait()


def _begin(environment: dict[str, str], cwd: str, output: str | None, job: bytes) -> None:
    os.setsid()
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    if output:
        file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        os.dup2(file, 1)
        os.dup2(file, 2)
        os.close(file)
    gc.freeze()  # the libraries stay: a collection need not walk through them
    work, arguments = pickle.loads(job)
    work(*arguments)


def run_program(program: str, *arguments: str) -> None:
    """What `python PROGRAM ARGUMENTS` does, the end included, in a process that has loaded libraries before.

    Python itself is not taken down: what would crash there is not seen.
    """
    sys.argv = [program, *arguments]
    multiprocessing.current_process().name = "MainProcess"  # by it libraries tell a program from a program's worker
    sys.path.insert(0, str(Path(program).parent))
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    try:
        runpy.run_path(program, run_name="__main__")
    finally:
        atexit._run_exitfuncs()
