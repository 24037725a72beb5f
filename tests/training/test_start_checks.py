"""The ranks that were asked for come up, all alike, or one sentence names what is odd."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from diffcse_scale.distributed import free_port, rank
from diffcse_scale.environment import code_version
from diffcse_scale.errors import InputError
from diffcse_scale.training.start_checks import check_interconnect, check_same_everywhere, check_world
from tests.ranks import run_ranks
from tests.training.launch import environment

JOIN = """
import sys
from diffcse_scale.errors import InputError
from diffcse_scale.distributed import join
try:
    join("gloo", float(sys.argv[1]))
except InputError as error:
    sys.exit(str(error))
"""


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


def _join(rank: int, world_size: int, port: int, seconds: float) -> subprocess.Popen[str]:
    place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)}
    place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [sys.executable, "-c", JOIN, str(seconds)]
    return subprocess.Popen(command, env={**environment(), **place}, stderr=subprocess.PIPE, text=True)


def test_ranks_that_do_not_come_are_named():
    port = free_port()
    processes = [_join(rank, 4, port, seconds=20) for rank in (0, 2)]
    said = [process.communicate(timeout=100)[1] for process in processes]
    assert [process.returncode for process in processes] == [1, 1]
    assert "Only some of the 4 ranks came within 20 seconds: missing is 1, 3;" in said[0]


def test_a_rank_that_finds_nobody_says_where_it_looked():
    process = _join(1, 2, port := free_port(), seconds=2)
    said = process.communicate(timeout=100)[1]
    assert f"Rank 1 on {os.uname().nodename} found nobody at 127.0.0.1:{port} within 2 seconds" in said


def test_a_rank_that_comes_twice_is_named():
    port = free_port()
    processes = [_join(rank, 3, port, seconds=20) for rank in (0, 1, 1)]
    try:
        ends = [process.communicate(timeout=100)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert any("Rank 1 has come twice to 127.0.0.1" in said for said in ends)
