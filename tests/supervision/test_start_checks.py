"""The ranks that were asked for come up, all alike, or one sentence names what is odd."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from diffcse_scale.distributed import rank
from diffcse_scale.foundation.environment import code_version
from diffcse_scale.foundation.errors import InputError
from diffcse_scale.rendezvous import join
from diffcse_scale.supervision import ending
from diffcse_scale.supervision.start_checks import check_interconnect, check_same_everywhere, check_world
from tests.support.forks import Fork
from tests.support.launch import environment
from tests.support.ranks import places, run_ranks


def test_a_world_of_another_size_than_was_asked_for_is_refused(monkeypatch):
    monkeypatch.setenv("DIFFCSE_WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match=r"4 ranks were asked for .* but rank 1 on .* is one of 2 \(WORLD_SIZE\)"):
        check_world()
    monkeypatch.setenv("WORLD_SIZE", "4")
    check_world()
    monkeypatch.delenv("DIFFCSE_WORLD_SIZE")
    check_world()


def _odd_one() -> str:
    check_same_everywhere(recipe="abc", corpus="def")
    try:
        check_same_everywhere(recipe="abc", code_version="old" if rank() == 1 else "new")
    except InputError as error:
        return str(error)
    return ""


def test_the_odd_rank_is_named_on_every_rank(tmp_path):
    for said in run_ranks(_odd_one, 3, tmp_path):
        assert said.startswith("The code version must be the same on every rank: rank 1 on ")
        assert said.endswith(" has old, the others new.")


def test_code_versions_tell_sources_apart(tmp_path, monkeypatch):
    before = code_version()
    assert before == code_version() and len(before) == 12
    import diffcse_kernels

    (tmp_path / "new.py").write_text("changed = True\n")
    monkeypatch.setattr(diffcse_kernels, "__path__", [str(tmp_path)])
    assert code_version() != before


def _rate() -> dict[str, float]:
    import torch

    return check_interconnect(torch.device("cpu"))


def test_the_interconnect_is_measured(tmp_path):
    for rate in run_ranks(_rate, 2, tmp_path):
        assert 0 < rate["latency_ms"] < 1000 and 0.001 < rate["gigabytes_per_second"] < 1000


def _join(seconds: float) -> None:
    try:
        join("gloo", seconds)
    except InputError as error:
        sys.exit(str(error))


class Comers:
    """Some of so many ranks, which look for the others."""

    def __init__(self, folder: Path, ranks: tuple[int, ...], world_size: int, seconds: float) -> None:
        found = places(world_size)
        self.port = found[0]["MASTER_PORT"]
        self.outputs = [folder / f"said-{number}.txt" for number in range(len(ranks))]
        self.processes = [
            Fork(_join, seconds, output=output, environment={**environment(), **found[rank]})
            for rank, output in zip(ranks, self.outputs, strict=True)
        ]

    def ends(self) -> list[tuple[int, str]]:
        """Exit code and words of each."""
        codes = [process.wait(100) for process in self.processes]
        return [(code, output.read_text()) for code, output in zip(codes, self.outputs, strict=True)]


@pytest.mark.slow
def test_ranks_that_do_not_come_are_named(tmp_path):
    ends = Comers(tmp_path, (0, 2), 4, seconds=5).ends()
    assert [code for code, _ in ends] == [1, 1]
    assert "Only some of the 4 ranks came within 5 seconds: missing is 1, 3;" in ends[0][1]


def test_a_rank_that_finds_nobody_says_where_it_looked(tmp_path):
    comers = Comers(tmp_path, (1,), 2, seconds=2)
    ((_, said),) = comers.ends()
    assert f"Rank 1 on {os.uname().nodename} found no other rank at 127.0.0.1:{comers.port} within 2 seconds" in said


@pytest.mark.slow
def test_ranks_that_are_stopped_while_they_wait_for_the_others_do_not_give_up(tmp_path):
    waiting = Comers(tmp_path, (1,), 2, seconds=12)
    time.sleep(1.5)
    for number in (signal.SIGSTOP, signal.SIGCONT):
        waiting.processes[0].send_signal(number)
        time.sleep(14 if number == signal.SIGSTOP else 0)
    main = {**environment(), **places(2)[0], "MASTER_PORT": waiting.port}
    assert Fork(_join, 30, output=tmp_path / "main.txt", environment=main).wait(60) == 0
    assert waiting.ends()[0][0] == 0


def test_a_rank_that_is_in_no_group_is_called_by_the_launchers_number(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(ending.time, "sleep", lambda seconds: None)

    def finds_nobody() -> None:
        raise InputError("Rank 3 found nobody.")

    with pytest.raises(SystemExit):
        ending.run_to_its_end(finds_nobody)
    assert capsys.readouterr().err == "error on rank 3: Rank 3 found nobody.\n"


@pytest.mark.slow
def test_a_rank_that_comes_twice_is_named(tmp_path):
    ends = Comers(tmp_path, (0, 1, 1), 3, seconds=8).ends()
    assert any("Rank 1 has come twice to 127.0.0.1" in said for _, said in ends)
