"""A worker that the run has forked is ended by a signal at once; the run itself only takes a note."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from diffcse_scale.distributed import is_main
from diffcse_scale.foundation.exit_codes import Reason
from diffcse_scale.supervision import supervision
from diffcse_scale.supervision.supervision import SIGNALS, StopRequested, Supervision
from tests.support.ranks import run_ranks


@pytest.fixture
def _listening() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    Supervision(run=None, watchdog=None)  # type: ignore[arg-type]  # neither is asked before a tick
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("_listening")
@pytest.mark.parametrize("number", SIGNALS)
def test_a_forked_worker_does_not_listen(number: signal.Signals):
    # a handler of Python's would not be called while a worker waits in C, as those of a pool do
    queue = multiprocessing.get_context("fork").SimpleQueue()
    worker = multiprocessing.get_context("fork").Process(
        target=lambda: (queue.put(signal.getsignal(number)), time.sleep(60))
    )
    worker.start()
    assert queue.get() is signal.SIG_DFL
    os.kill(worker.pid, number)
    worker.join(10)
    assert worker.exitcode == -number


@pytest.mark.usefixtures("_listening")
def test_the_process_itself_goes_on():
    os.kill(os.getpid(), signal.SIGUSR1)
    assert signal.getsignal(signal.SIGUSR1) is not signal.SIG_DFL


class _Run:
    """A run folder that somebody looks at."""

    def __init__(self, folder: Path) -> None:
        self.stop_file, self.looks = folder / "stop", 0
        self.status = SimpleNamespace(update=lambda **_: None)

    def owned(self) -> bool:
        self.looks += 1
        return True


def _supervised(folder: Path) -> tuple[Supervision, _Run]:
    run = _Run(folder)
    return Supervision(run, SimpleNamespace(beat=lambda _: None)), run  # type: ignore[arg-type]


@pytest.mark.usefixtures("_listening")
def test_in_training_files_are_looked_at_by_the_clock_and_before_an_export_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(supervision, "LOOK", 1000.0)
    watcher, run = _supervised(tmp_path)
    for _ in range(100):
        watcher.tick("training")
    assert run.looks == 1
    watcher.tick("exporting")
    assert run.looks == 2


@pytest.mark.usefixtures("_listening")
def test_a_stop_file_is_acted_upon_within_a_second_and_two_steps(tmp_path, monkeypatch):
    now = 1000.0
    monkeypatch.setattr(supervision, "time", SimpleNamespace(monotonic=lambda: now))
    watcher, run = _supervised(tmp_path)
    watcher.tick("training")
    run.stop_file.touch()
    with pytest.raises(StopRequested) as stop:
        for _ in range(10 + 2):  # of 100 ms
            now += 0.1
            watcher.tick("training")
    assert stop.value.reason is Reason.STOP_FILE


@pytest.mark.usefixtures("_listening")
def test_an_answer_makes_only_that_checkpoint_whole_which_was_asked_about(tmp_path):
    watcher, _ = _supervised(tmp_path)
    committed: list[int | None] = []
    checkpoints: Any = SimpleNamespace(writing=lambda: False)
    checkpoints.commit_if_written = lambda writing: committed.append(checkpoints.pending)
    for pending in (None, 10, 20, 20):
        checkpoints.pending = pending
        watcher.tick("training", checkpoints)
    assert committed == [20]  # a step after all of it was found to be written


def _first_steps(folder: Path) -> tuple[int, str]:
    """Rank 1 reaches its first tick only when rank 0 has left its own; it is asked to stop at its second."""
    watcher, _ = _supervised(folder)
    gone_on = folder / "gone_on"
    if is_main():
        watcher.tick("training")
        gone_on.touch()
    else:
        deadline = time.monotonic() + 20
        while not gone_on.exists():
            assert time.monotonic() < deadline, "rank 0 waits for rank 1"
            time.sleep(0.01)
        watcher.tick("training")
        os.kill(os.getpid(), signal.SIGUSR1)
    for step in range(2, 10):
        try:
            watcher.tick("training")
        except StopRequested as stop:
            return step, stop.reason.name
    return 0, ""


def test_no_step_waits_for_other_hosts_and_all_stop_after_the_same_one(tmp_path):
    assert run_ranks(_first_steps, 2, tmp_path, tmp_path) == [(3, Reason.USR1.name)] * 2
