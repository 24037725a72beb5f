"""Who is silent: three ranks' watchdogs, in processes of their own, as signs of life come and end."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from diffcse_scale.foundation.exit_codes import ExitCode
from diffcse_scale.rendezvous import join
from diffcse_scale.supervision import watchdog as module
from diffcse_scale.supervision.watchdog import Watchdog
from tests.support.forks import Fork
from tests.support.launch import environment
from tests.support.ranks import places


def stands_still() -> None:
    time.sleep(1000)


def _rank(folder: Path, doing: str, stops_after: int, ready: str) -> None:
    """Goes on until its own time comes: then it stands still, its process alive."""
    join("gloo", 60)
    with Watchdog(folder, patience=1.5) as watchdog:
        (folder / ready).touch()
        for beat in range(10_000):
            watchdog.beat(doing)
            if beat == stops_after:
                stands_still()
            time.sleep(0.05)


class World:
    """Three ranks; `stops_after[rank]` beats a main thread stands still."""

    def __init__(self, folder: Path, stops_after: tuple[int, ...], doing: str = "training") -> None:
        self.folder = folder
        self.processes = []
        for rank, place in enumerate(places(len(stops_after))):
            work = (_rank, folder, doing, stops_after[rank], f"ready-{rank}")
            variables = {**environment(), **place}
            self.processes.append(Fork(*work, output=folder / f"said-{rank}.txt", environment=variables))

    def __enter__(self) -> World:
        deadline = time.monotonic() + 120
        while not all((self.folder / f"ready-{rank}").exists() for rank in range(len(self.processes))):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        return self

    def __exit__(self, *error: object) -> None:
        for process in self.processes:
            process.kill()
            process.wait()

    def pause(self, *ranks: int, seconds: float) -> None:
        """As a scheduler, a container or Ctrl-Z does it."""
        for number in (signal.SIGSTOP, signal.SIGCONT):
            for rank in ranks:
                os.kill(self.processes[rank].pid, number)
            time.sleep(seconds if number == signal.SIGSTOP else 0)

    def end(self, rank: int) -> tuple[int, str]:
        code = self.processes[rank].wait(30)
        return code, (self.folder / f"said-{rank}.txt").read_text()


@pytest.mark.parametrize("silent", [0, 1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_stopped_process_is_found_by_the_others_and_named(tmp_path, silent):
    with World(tmp_path, (9999, 9999, 9999)) as world:
        os.kill(world.processes[silent].pid, signal.SIGSTOP)
        for rank in {0, 1, 2} - {silent}:
            code, said = world.end(rank)
            assert code == ExitCode.HUNG
            assert f"Rank {silent} has given no sign of life for" in said
            assert "while training; the stacks of the ranks that wait are in " in said
            stacks = (tmp_path / f"rank-{rank}.txt").read_text()
            assert f"rank {rank} on " in stacks and 'test_watchdog.py", line' in stacks
    assert not (tmp_path / f"rank-{silent}.txt").exists()


def test_a_main_thread_that_stands_still_is_the_one_that_is_behind(tmp_path):
    with World(tmp_path, (40, 20, 40)) as world:
        ends = [world.end(rank) for rank in range(3)]
    assert [code for code, _ in ends] == [ExitCode.HUNG] * 3
    assert all("Rank 1 is alive but has not gone on for" in said for _, said in ends)
    assert "in stands_still" in (tmp_path / "rank-1.txt").read_text()


@pytest.mark.slow
def test_when_none_is_behind_that_is_what_is_said(tmp_path):
    with World(tmp_path, (20, 20, 20)) as world:
        assert all("No rank has gone on for" in world.end(rank)[1] for rank in range(3))


@pytest.mark.slow
def test_what_may_take_long_is_not_a_hang(tmp_path):
    with World(tmp_path, (20, 20), doing="exporting") as world:
        time.sleep(6)
        assert [process.poll() for process in world.processes] == [None, None]


@pytest.mark.slow
def test_ranks_that_go_on_are_left_alone(tmp_path):
    with World(tmp_path, (9999, 9999)) as world:
        time.sleep(5)
        assert [process.poll() for process in world.processes] == [None, None]


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 3])
def test_ranks_that_are_stopped_together_go_on_and_one_that_is_silent_later_is_still_found(tmp_path, ranks):
    world = World(tmp_path, (9999,) * (ranks - 1) + (180,))
    with world:
        for seconds in (5, 1, 4):  # a beat may be twice 1.5 seconds old
            world.pause(*range(ranks), seconds=seconds)
        time.sleep(3)
        assert [process.poll() for process in world.processes] == [None] * ranks
        found = {world.end(rank) for rank in range(ranks)}
    said = "No rank has gone on for" if ranks == 1 else "Rank 2 is alive but has not gone on for"
    assert all(code == ExitCode.HUNG and said in words for code, words in found)


@pytest.mark.slow
def test_of_several_the_one_that_alone_was_stopped_is_named_by_itself_too(tmp_path):
    with World(tmp_path, (9999, 9999, 9999)) as world:
        world.pause(1, seconds=2.5)
        for rank in range(3):
            code, said = world.end(rank)
            assert code == ExitCode.HUNG and "Rank 1 has given no sign of life for" in said


def test_a_clock_that_leaps_while_the_process_is_stopped_does_not_count(tmp_path, monkeypatch):
    leap = 0.0
    real: Callable[[], float] = time.monotonic
    monkeypatch.setattr(module.time, "monotonic", lambda: real() + leap)
    watchdog, found = Watchdog(tmp_path, patience=0.2), threading.Event()
    monkeypatch.setattr(watchdog, "_end", lambda verdict: found.set())
    with watchdog:
        for _ in range(5):
            leap += 1000
            watchdog.beat("training")
            assert not found.wait(0.03)
        assert found.wait(10)  # no beat comes any more


def _alone(folder: Path, hangs: bool) -> None:
    """A rank whose main thread stands still; its last words are not written by a disk that hangs."""

    def report(message: str, code: ExitCode) -> None:
        print(f"reported, stacks are there: {folder.exists()}", flush=True)
        if hangs:
            stands_still()

    module.WRITING = 1.0
    with Watchdog(folder, 0.3, report) as watchdog:
        watchdog.beat("training")
        stands_still()


@pytest.mark.slow
@pytest.mark.parametrize("hangs", [False, True])
def test_the_verdict_is_told_before_stacks_are_written_and_whether_or_not_they_can_be(tmp_path, hangs):
    folder, said = tmp_path / "hang", tmp_path / "said.txt"
    assert Fork(_alone, folder, hangs, output=said).wait(30) == ExitCode.HUNG
    verdict, report = (line for line in said.read_text().splitlines() if "rank" in line.lower() or "reported" in line)
    assert "No rank has gone on for" in verdict and report == "reported, stacks are there: False"
    assert hangs or "in stands_still" in (folder / "rank-0.txt").read_text()
