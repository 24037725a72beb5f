"""Who is silent: three ranks' watchdogs, in processes of their own, as signs of life come and end."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from diffcse_scale.foundation.environment import host_name
from diffcse_scale.foundation.exit_codes import ExitCode
from diffcse_scale.recipe_file import load_recipe
from diffcse_scale.rendezvous import FAILURE, join
from diffcse_scale.runs.directory import RunDirectory
from diffcse_scale.supervision import watchdog as module
from diffcse_scale.supervision.watchdog import PULSE, Watchdog, _Sign, _Verdict
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
        """Exit code, and the verdict as a rank has kept it with its stacks."""
        code = self.processes[rank].wait(30)
        kept = self.folder / f"rank-{rank}.txt"
        return code, kept.read_text().splitlines()[0] if kept.exists() else ""

    def said(self) -> list[str]:
        """The lines that all have said."""
        files = (self.folder / f"said-{rank}.txt" for rank in range(len(self.processes)))
        return [line for file in files for line in file.read_text().splitlines() if line.startswith("error")]


@pytest.mark.parametrize(
    "silent", [pytest.param(0, marks=pytest.mark.slow), 1, pytest.param(2, marks=pytest.mark.slow)]
)
def test_a_stopped_process_is_found_by_the_others_and_named(tmp_path, silent):
    with World(tmp_path, (9999, 9999, 9999)) as world:
        os.kill(world.processes[silent].pid, signal.SIGSTOP)
        for rank in {0, 1, 2} - {silent}:
            code, said = world.end(rank)
            assert code == ExitCode.HUNG
            assert f"Rank {silent} on {host_name()} has not responded for" in said
            assert "while training; the stacks of the waiting ranks are in " in said
            assert 'test_watchdog.py", line' in (tmp_path / f"rank-{rank}.txt").read_text()
        (line,) = world.said()
        assert line.startswith(f"error: Rank {silent} on ")
    assert not (tmp_path / f"rank-{silent}.txt").exists()


def test_a_main_thread_that_stands_still_is_the_one_that_is_behind(tmp_path):
    with World(tmp_path, (40, 20, 40)) as world:
        ends = [world.end(rank) for rank in range(3)]
    assert [code for code, _ in ends] == [ExitCode.HUNG] * 3
    assert all(
        "is alive but has made no progress for over" in said and f": Rank 1 on {host_name()}" in said
        for _, said in ends
    )
    assert "in stands_still" in (tmp_path / "rank-1.txt").read_text()


@pytest.mark.slow
def test_when_none_is_behind_that_is_what_is_said(tmp_path):
    with World(tmp_path, (20, 20, 20)) as world:
        assert all("No rank has made progress for over" in world.end(rank)[1] for rank in range(3))


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
    said = (
        "No rank has made progress for over"
        if ranks == 1
        else f"Rank 2 on {host_name()} is alive but has made no progress for over"
    )
    assert all(code == ExitCode.HUNG and said in words for code, words in found)


@pytest.mark.slow
def test_of_several_the_one_that_alone_was_stopped_is_named_by_itself_too(tmp_path):
    with World(tmp_path, (9999, 9999, 9999)) as world:
        world.pause(1, seconds=2.5)
        for rank in range(3):
            code, said = world.end(rank)
            assert code == ExitCode.HUNG and f"Rank 1 on {host_name()} has not responded" in said


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
    assert "No rank has made progress for over" in verdict and report == "reported, stacks are there: False"
    assert hangs or "in stands_still" in (folder / "rank-0.txt").read_text()


class SlowStore(dist.Store):
    """A store whose answer to the question about all signs takes long."""

    def __init__(self, store: dist.Store, seconds: float) -> None:
        super().__init__()
        self.to, self.seconds = store, seconds

    def __getattribute__(self, name: str) -> Any:
        if name in ("set", "get", "compare_set", "set_timeout"):
            return getattr(object.__getattribute__(self, "to"), name)
        return object.__getattribute__(self, name)

    def multi_get(self, keys: list[str]) -> list[bytes]:
        found = self.to.multi_get(keys)  # as it was when the question came
        time.sleep(self.seconds)
        return found


@pytest.mark.slow
def test_where_the_store_is_slow_no_rank_that_lives_is_called_silent(tmp_path, monkeypatch):
    """Each look of rank 0 takes three times its patience; rank 1 gives a sign all the time, and then none any more."""
    store = SlowStore(dist.HashStore(), 1.5)
    monkeypatch.setattr(module, "control_store", lambda: store)
    monkeypatch.setattr(module, "world_size", lambda: 2)
    for number in range(2):
        store.set(module.host_key(number), f"node{number}")
    watchdog, found, lives = Watchdog(tmp_path, patience=0.5), [], threading.Event()
    monkeypatch.setattr(watchdog, "_end", found.append)

    def live() -> None:
        for period in range(1000):
            if lives.wait(0.05):
                return
            store.set(module._key(1), f"{period} {period} training well")

    threading.Thread(target=live, daemon=True).start()
    with watchdog:
        for _ in range(100):
            watchdog.beat("training")
            time.sleep(0.06)
        assert found == []
        lives.set()
        deadline = time.monotonic() + 10
        while not found and time.monotonic() < deadline:
            watchdog.beat("training")
            time.sleep(0.06)
    assert found[0].sentence.startswith("Rank 1 on node1 has not responded for ")


@pytest.fixture
def shared(monkeypatch):
    """A store as rank 0 of three has it, which is this process."""
    store = dist.HashStore()
    monkeypatch.setattr(module, "control_store", lambda: store)
    monkeypatch.setattr(module, "world_size", lambda: 3)
    store.multi_set([module.host_key(number) for number in range(3)], ["a", "b", "c"])
    return store


@pytest.mark.parametrize("told", [False, True])
def test_a_rank_that_has_said_why_it_failed_has_not_gone_without_a_word(tmp_path, monkeypatch, shared, told):
    """Rank 1 has failed, and rank 2 has left as it lost it, while rank 0 does what takes long."""
    monkeypatch.setattr(module, "GONE", 0.1)
    watchdog, found = Watchdog(tmp_path, patience=60), threading.Event()
    watchdog._period = 0.02
    monkeypatch.setattr(watchdog, "_end", lambda verdict: found.set())
    shared.multi_set([module._key(1), module._key(2)], ["9 9 training well", "9 9 training lost"])
    if told:
        shared.set(FAILURE, "why")
    watchdog.beat("exporting")
    with watchdog:
        assert found.wait(0.5 if told else 10) != told
    assert told or (watchdog._found.code, watchdog._found.sentence[:20]) == (ExitCode.LOST, "Rank 1 on b, 2 on c ")


def test_a_verdict_is_not_written_over_by_a_sign_that_was_begun_before_it(tmp_path, shared):
    watchdog, begun, published = Watchdog(tmp_path, patience=60), threading.Event(), threading.Event()

    class Slow(SlowStore):
        def __getattribute__(self, name: str) -> Any:
            if name == "set":
                begun.set()
                published.wait(0.2)
            return super().__getattribute__(name)

    sign = threading.Thread(target=watchdog._publish, args=(Slow(shared, 0),))
    sign.start()
    assert begun.wait(10)
    watchdog._found = _Verdict("Rank 1 has gone.", ExitCode.LOST, by_main=True)
    watchdog._publish(shared)
    published.set()
    sign.join()
    assert shared.get(PULSE) == b"0 80 Rank 1 has gone."


@pytest.mark.parametrize("doing", ["", "reading a long corpus"])
def test_a_sign_says_whatever_its_rank_does(doing):
    sign = _Sign(3, 4, doing, "well")
    assert _Sign.read(str(sign).encode()) == sign


def test_nobody_waits_to_hear_who_has_gone_over_an_error_of_nccl(tmp_path, monkeypatch, shared):
    watchdog = Watchdog(tmp_path, patience=60)
    monkeypatch.setattr(watchdog, "_name_who_has_gone", lambda: pytest.fail("it waits"))
    error = dist.DistBackendError("NCCL error: unhandled system error")
    watchdog.__exit__(type(error), error, None)


def test_a_hang_of_a_trial_writes_no_stacks(tmp_path):
    run = RunDirectory.open(str(tmp_path / "run"), load_recipe("quickstart"), "dry")
    watchdog = Watchdog(run.hang, patience=60, report=run.failed)
    verdict = watchdog._hung("Rank 1 hangs", 1)
    watchdog._write(verdict)
    assert verdict.sentence == "Rank 1 hangs while preparing." and list(tmp_path.iterdir()) == []
