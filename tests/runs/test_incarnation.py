"""Which of several processes owns a run."""

from __future__ import annotations

import pytest

from diffcse_scale.runs.incarnation import Incarnation, Ownership, incarnations


def _of_job(restart: int, job: str | None = "7", step: int = 0) -> Incarnation:
    return Incarnation(job=job, restart=restart, step=step)


def test_the_last_incarnation_owns_the_run_and_earlier_ones_notice(tmp_path):
    file = tmp_path / "incarnations.jsonl"
    first = Ownership(file, _of_job(0))
    assert first.lasts()
    second = Ownership(file, _of_job(1))
    assert second.lasts() and not first.lasts()
    assert [entry.restart for entry in incarnations(file)] == [0, 1]


def test_a_line_cut_short_is_left_out_and_does_not_spoil_the_next(tmp_path):
    file = tmp_path / "incarnations.jsonl"
    first = Ownership(file, _of_job(0))
    with file.open("a") as lines:
        lines.write('{"job": "7", "rest')  # the disk was full
    assert first.lasts()
    assert Ownership(file, _of_job(2)).lasts()
    assert [entry.restart for entry in incarnations(file)] == [0, 2]


def test_a_file_that_is_gone_is_owned_by_nobody(tmp_path):
    owner = Ownership(tmp_path / "incarnations.jsonl", _of_job(0))
    (tmp_path / "incarnations.jsonl").unlink()
    assert not owner.lasts()


def test_job_and_restart_come_from_slurm(monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "3")
    monkeypatch.setenv("SLURMD_NODENAME", "node9")
    assert "job 12 (restart 3), process " in str(Incarnation()) and str(Incarnation()).endswith(" on node9")


@pytest.mark.parametrize(
    ("earlier", "later", "succeeds"),
    [
        (_of_job(0), _of_job(1), True),
        (_of_job(1), _of_job(1), False),
        (_of_job(0), _of_job(1, job="8"), False),
        (_of_job(0, job=None), _of_job(1, job=None), False),  # without a scheduler nobody says which is the later
    ],
)
def test_only_a_later_start_of_the_same_job_succeeds_another(earlier, later, succeeds):
    assert later.succeeds(earlier) is succeeds
