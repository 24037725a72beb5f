"""A request to stop is a note that the run takes, and acts upon at a place of its own; its workers do not listen."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from diffcse_scale.distributed import is_main
from diffcse_scale.foundation.errors import RunEnded
from diffcse_scale.foundation.exit_codes import ExitCode, Reason
from diffcse_scale.supervision import supervision
from diffcse_scale.supervision.supervision import SIGNALS, StopRequested, Supervision
from tests.support.forks import Fork
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
def test_a_forked_worker_does_not_listen_and_term_ends_it(number: signal.Signals):
    # a handler of Python's would not be called while a worker waits in C, as those of a pool do
    queue = multiprocessing.get_context("fork").SimpleQueue()
    worker = multiprocessing.get_context("fork").Process(
        target=lambda: (queue.put(signal.getsignal(number)), time.sleep(60))
    )
    worker.start()
    assert queue.get() is (signal.SIG_DFL if number == signal.SIGTERM else signal.SIG_IGN)
    os.kill(worker.pid, number)
    worker.terminate()
    worker.join(10)
    assert worker.exitcode == -signal.SIGTERM


@pytest.mark.usefixtures("_listening")
def test_the_process_itself_goes_on():
    os.kill(os.getpid(), signal.SIGUSR1)
    assert signal.getsignal(signal.SIGUSR1) is not signal.SIG_DFL


class _Run:
    """A run folder that somebody looks at."""

    def __init__(self, folder: Path) -> None:
        self.path, self.stop_file, self.looks, self.is_trial = folder, folder / "stop", 0, False
        self.status = SimpleNamespace(update=lambda **_: None)

    def owned(self) -> bool:
        self.looks += 1
        return True

    def __exit__(self, kind: object, error: RunEnded, traceback: object) -> None:
        print(f"last word: {error.exit_code:d}", flush=True)


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
@pytest.mark.parametrize(
    ("text", "reason", "code"), [("", Reason.STOP_FILE, 74), ("requeue\n", Reason.REQUEUE_FILE, 75)]
)
def test_a_stop_file_is_acted_upon_within_two_seconds_and_a_step(tmp_path, monkeypatch, text, reason, code):
    now = 1000.0
    monkeypatch.setattr(supervision, "time", SimpleNamespace(monotonic=lambda: now))
    watcher, run = _supervised(tmp_path)
    for _ in range(50):
        now += 0.1
        watcher.tick("training")
    run.stop_file.write_text(text)
    with pytest.raises(StopRequested) as stop:
        for _ in range(20 + 1):  # of 100 ms
            now += 0.1
            watcher.tick("training")
    assert stop.value.reason is reason and reason.exit_code == code and "stop file" in reason.words


@pytest.mark.usefixtures("_listening")
def test_a_trial_is_not_stopped_by_the_file_of_a_run_and_leaves_it_there(tmp_path):
    (tmp_path / "stop").touch()
    watcher, run = _supervised(tmp_path)
    run.is_trial = True
    with watcher.preparing():
        pass
    watcher.ended(Reason.TERM, None, 0, None)
    assert (tmp_path / "stop").exists()


@pytest.mark.usefixtures("_listening")
def test_an_answer_makes_only_that_checkpoint_whole_which_was_asked_about(tmp_path, monkeypatch):
    monkeypatch.setattr(supervision, "LOOK", 0.0)  # at every tick
    watcher, _ = _supervised(tmp_path)
    committed: list[int | None] = []
    checkpoints: Any = SimpleNamespace(writing=lambda: False)
    checkpoints.commit_if_written = lambda writing: committed.append(checkpoints.pending)
    for pending in (None, 10, 20, 20):
        checkpoints.pending = pending
        watcher.tick("training", checkpoints)
    assert committed == [20]  # a step after all of it was found to be written


def _stopped_at_work(folder: Path, number: int, everybody: bool) -> None:
    """The life of a process that is asked to stop while two workers of `datasets` are busy for it."""
    import datasets

    def work(row: dict[str, int]) -> dict[str, int]:
        (folder / f"worker-{row['number']}").touch()
        time.sleep(60)
        return row

    def ask() -> None:
        while len(list(folder.glob("worker-*"))) < 2:
            time.sleep(0.01)
        (os.killpg if everybody else os.kill)(os.getpid(), number)

    threading.Thread(target=ask, daemon=True).start()
    datasets.disable_progress_bars()
    try:
        with _supervised(folder)[0].preparing():
            datasets.Dataset.from_dict({"number": [0, 1]}).map(work, num_proc=2)
    except RunEnded as end:
        print(end)
        sys.exit(end.exit_code)


@pytest.mark.parametrize("everybody", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("number", [signal.SIGTERM, *(pytest.param(n, marks=pytest.mark.slow) for n in SIGNALS)])
def test_a_request_while_workers_prepare_is_one_line_and_its_code(tmp_path, number, everybody):
    code = SIGNALS[number].exit_code
    process = Fork(_stopped_at_work, tmp_path, number, everybody, output=tmp_path / "said")
    assert process.wait(20) == code, (tmp_path / "said").read_text()
    first, *more = (tmp_path / "said").read_text().splitlines()
    name = signal.Signals(number).name.removeprefix("SIG")
    assert first == f"Stopped by signal {name} before training began; continue with --auto-resume."
    # a pool whose workers TERM has ended, too, may wait for them for ever, and is not waited for
    assert more in ([], [f"last word: {code:d}"] if everybody and number == signal.SIGTERM else [])


def _deaf(folder: Path) -> None:
    """The life of a process whose main thread is asked to stop and goes on all the same, and which has a worker."""
    supervision.GRACE = 0.1
    worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    worker.start()
    (folder / "worker").write_text(str(worker.pid))
    with _supervised(folder)[0].preparing():
        os.kill(os.getpid(), signal.SIGTERM)
        while True:
            with contextlib.suppress(BaseException):
                time.sleep(60)


@pytest.mark.slow
def test_a_main_thread_that_does_not_leave_is_not_waited_for(tmp_path):
    process = Fork(_deaf, tmp_path, output=tmp_path / "said")
    assert process.wait(20) == ExitCode.STOPPED
    assert (tmp_path / "said").read_text().splitlines() == [
        "Stopped by signal TERM before training began; continue with --auto-resume.",
        "last word: 74",
    ]
    with contextlib.suppress(psutil.NoSuchProcess):  # or it has ended, and nobody has asked for its exit code yet
        worker = psutil.Process(int((tmp_path / "worker").read_text()))
        _, alive = psutil.wait_procs([worker], timeout=5)
        assert not alive or worker.status() == psutil.STATUS_ZOMBIE


@pytest.mark.usefixtures("_listening")
def test_a_request_counts_more_than_what_a_library_raises_over_it(tmp_path, monkeypatch):
    monkeypatch.setattr(supervision, "LOOK", 0.01)
    watcher, run = _supervised(tmp_path)
    with pytest.raises(RunEnded, match="Stopped by the stop file before training") as end, watcher.preparing():
        run.stop_file.touch()
        try:
            time.sleep(20)
        finally:
            raise TimeoutError("the result was not ready")
    assert end.value.exit_code is ExitCode.STOPPED
    with pytest.raises(TimeoutError), watcher.preparing():
        raise TimeoutError  # nobody has asked for an end


def _first_steps(folder: Path) -> tuple[int, str]:
    """Rank 1 reaches its first tick only when rank 0 has left its own; it is asked to stop at its second."""
    supervision.LOOK = 0.0
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


ASKED = 150


def _spaced(folder: Path) -> tuple[int, int]:
    """Steps of 1 and 4 ms; the slower rank is asked to stop. The last step, and how many exchanges there were."""
    supervision.LOOK, begun = 0.1, 0

    class Counted(supervision.Agreement):
        def __init__(self, *flags: int) -> None:
            nonlocal begun
            begun += 1
            super().__init__(*flags)

    supervision.Agreement = Counted  # type: ignore[misc]
    watcher, _ = _supervised(folder)
    for step in range(1, 1000):
        time.sleep(0.001 if is_main() else 0.004)
        if step == ASKED and not is_main():
            os.kill(os.getpid(), signal.SIGUSR1)
        try:
            watcher.tick("training")
        except StopRequested:
            return step, begun
    return 0, begun


def test_exchanges_are_by_the_clock_and_all_stop_after_the_same_step_all_the_same(tmp_path):
    (stopped, begun), other = run_ranks(_spaced, 2, tmp_path, tmp_path)
    assert other == (stopped, begun)
    assert ASKED < stopped <= ASKED + 2 * 0.1 / 0.004  # the slower rank says how many steps lie between two
    assert begun < stopped / 5  # 1, 2, 4, ... and then about 20 steps
