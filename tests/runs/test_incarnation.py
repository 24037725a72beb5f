"""Which of several processes owns a run."""

from __future__ import annotations

import errno

import pytest

from diffcse_scale.foundation import patience
from diffcse_scale.runs.incarnation import Incarnation, Ownership, incarnations
from tests.support.file_events import FileEvents, fail


def _of_job(restart: int, job: str | None = "7", step: int = 0) -> Incarnation:
    return Incarnation(job=job, restart=restart, step=step)


def _begun(file, restart: int, after: Ownership | None = None) -> Ownership:
    token = after.incarnation.token if after else ""
    ownership = Ownership(file, _of_job(restart).model_copy(update={"after": token}))
    ownership.begin()
    return ownership


def test_the_last_incarnation_owns_the_run_and_earlier_ones_notice(tmp_path):
    file = tmp_path / "incarnations.jsonl"
    first = _begun(file, 0)
    assert first.lasts()
    second = _begun(file, 1, first)
    assert second.lasts() and not first.lasts()
    assert [entry.restart for entry in incarnations(file)] == [0, 1]


def test_of_two_that_come_after_the_same_one_the_first_line_counts_whoever_looks(tmp_path):
    file = tmp_path / "incarnations.jsonl"
    before = _begun(file, 0)
    first, late = _begun(file, 1, before), _begun(file, 2, before)
    assert (before.lasts(), first.lasts(), late.lasts()) == (False, True, False)
    assert [entry.restart for entry in incarnations(file)] == [0, 1]
    assert _begun(file, 3, first).lasts()


def test_lines_of_an_earlier_version_do_not_say_what_they_come_after_and_all_count(tmp_path):
    file = tmp_path / "incarnations.jsonl"
    file.write_text("".join(_of_job(restart).model_dump_json(exclude={"after"}) + "\n" for restart in (0, 1)))
    last = Incarnation.model_validate(incarnations(file)[-1])
    assert last.restart == 1
    assert _begun(file, 2, Ownership(file, last)).lasts()


def test_a_line_that_a_file_server_lost_is_missed_by_its_owner(tmp_path):
    """Hosts of a network file system that append at once may write to one place."""
    file = tmp_path / "incarnations.jsonl"
    first = _begun(file, 0)
    other = first.incarnation.model_copy(update={"token": "0" * 32})
    file.write_text(other.model_dump_json() + "\n")
    assert not first.lasts()


def test_a_line_cut_short_is_left_out_and_does_not_spoil_the_next(tmp_path):
    file = tmp_path / "incarnations.jsonl"
    first = _begun(file, 0)
    with file.open("a") as lines:
        lines.write('{"job": "7", "rest')  # the disk was full
    assert first.lasts()
    assert _begun(file, 2, first).lasts()
    assert [entry.restart for entry in incarnations(file)] == [0, 2]


@pytest.mark.parametrize("code", [errno.ESTALE, errno.EIO])
def test_an_error_of_the_file_server_is_no_later_incarnation(tmp_path, monkeypatch, code):
    file = tmp_path / "incarnations.jsonl"
    owner = _begun(file, 0)
    with FileEvents([tmp_path], fail(1, code), reads=True) as events:
        assert owner.lasts()
    assert events.count == 2
    with FileEvents([tmp_path], fail(1, code), reads=True):
        assert [entry.restart for entry in incarnations(file)] == [0]
    monkeypatch.setattr(patience, "PATIENCE", 0.1)
    with FileEvents([tmp_path], fail(1, code, times=1000), reads=True), pytest.raises(OSError) as error:
        owner.lasts()
    assert (error.value.errno, error.value.filename) == (code, str(file))
    assert owner.lasts()


@pytest.mark.parametrize(
    "damage", [lambda file: file.unlink(), lambda file: file.write_text("")], ids=["gone", "empty"]
)
def test_a_file_that_has_lost_its_lines_names_nobody_and_is_an_error(tmp_path, damage):
    file = tmp_path / "incarnations.jsonl"
    owner = _begun(file, 0)
    damage(file)
    with pytest.raises(OSError) as error:
        owner.lasts()
    assert error.value.filename == str(file)


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
