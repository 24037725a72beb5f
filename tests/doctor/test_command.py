"""The command: one table of a machine, or of the nodes of a job, and what ranks see together."""

from __future__ import annotations

import io
import json
import time
from pathlib import Path

import pytest
from rich.console import Console
from torch import multiprocessing

from diffcse_scale.doctor import command, exchange
from diffcse_scale.doctor.command import CHECKS, merged, print_rows
from diffcse_scale.doctor.verdict import Row, Verdict
from diffcse_scale.foundation.errors import InputError
from tests.support.command_line import diffcse_scale
from tests.support.forks import spawn
from tests.support.launch import ROOT, Ranks

PROGRAM = ROOT / "diffcse_scale" / "__main__.py"


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multiprocessing, "spawn", spawn)


def test_a_machine_of_cpus_works_and_two_ranks_of_it_are_measured(tmp_path: Path, forked: None) -> None:
    done = diffcse_scale("doctor", "--ranks", 2, "--json", tmp_path / "doctor.json", cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    written = json.loads((tmp_path / "doctor.json").read_text())
    ((rows,),) = (written["nodes"].values(),)
    assert len(rows) == len(CHECKS)
    assert all(row["check"] in done.stdout for row in rows)
    (measured,) = written["ranks"]
    assert measured["check"] == "all-reduce, gloo" and "2 ranks" in measured["found"]
    assert "0 will not work" in done.stdout


def test_what_will_not_work_is_the_exit_code_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "no-such-interface")
    done = diffcse_scale("doctor", cwd=tmp_path)
    assert done.returncode == 2
    assert "name one that is up" in done.stdout and "1 will not work" in done.stdout


def test_ranks_of_a_job_give_one_table_with_what_they_see_together(tmp_path: Path) -> None:
    with Ranks(tmp_path, "doctor", "--json", str(tmp_path / "doctor.json"), program=PROGRAM) as ranks:
        assert ranks.wait() == [0, 0], ranks.output()
        assert ranks.output().count("0 will not work") == 1
    written = json.loads((tmp_path / "doctor.json").read_text())
    assert [len(rows) for rows in written["nodes"].values()] == [len(CHECKS)]  # of the node's first rank
    assert [row["check"] for row in written["ranks"]] == ["shared folder", "all-reduce, gloo"]


def test_ranks_that_do_not_reach_each_other_still_give_a_table(tmp_path: Path) -> None:
    with Ranks(tmp_path, "doctor", program=PROGRAM, GLOO_SOCKET_IFNAME="no-such-interface") as ranks:
        assert ranks.wait() == [2, 2], ranks.output()
        assert "did not meet" in ranks.output() and "SLURM" in ranks.output()


def test_an_exchange_that_never_ends_is_told_and_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[list[Row]] = []
    ended: list[int] = []
    monkeypatch.setattr(exchange.os, "_exit", ended.append)
    monkeypatch.setattr(exchange, "all_reduce_rate", lambda device: time.sleep(0.5) or {})
    with pytest.raises(KeyError):  # the stand-in comes back, with nothing
        exchange.measure(0.1, False, told.append)
    assert ended == [2]
    ((row,),) = told
    assert (row.check, row.verdict) == ("all-reduce, gloo", Verdict.BROKEN) and "not done within" in row.found


def test_what_nodes_have_alike_stands_there_once() -> None:
    same, mine, other = Row("torch", "2.13"), Row("memory", "8 GiB"), Row("memory", "2 GiB", Verdict.SLOWER, "more")
    lines = merged({"node1": [same, mine], "node2": [same, other], "node3": [same, other]})
    assert lines == [("all 3 nodes", same), ("node1", mine), ("node2, node3", other)]
    assert merged({"alone": [same]}) == [("", same)]


def test_brackets_in_what_was_found_are_shown() -> None:
    console = Console(file=io.StringIO())
    print_rows("host", [("", Row("ranks", "[Errno 13] no", Verdict.BROKEN, "see [this]"))], console)
    text = console.file.getvalue()
    assert "[Errno 13] no" in text and "see [this]" in text and "1 will not work" in text


def test_ranks_inside_ranks_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="already one of several"):
        command.examine(command.DoctorOptions(ranks=2))


def test_ranks_without_a_device_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    monkeypatch.setattr(command.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(command.torch.cuda, "device_count", lambda: 1)
    with pytest.raises(InputError, match="--ranks 2: every rank needs a device, but there are 1"):
        command.examine(command.DoctorOptions(ranks=2))
