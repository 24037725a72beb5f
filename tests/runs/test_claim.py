"""One run, one writer: also where hosts share no locks, where a lock is lost, and where a file server fails."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from diffcse_scale.foundation import patience
from diffcse_scale.foundation.errors import InputError, RunEnded
from diffcse_scale.foundation.exit_codes import ExitCode
from diffcse_scale.foundation.locks import Lock
from diffcse_scale.recipe_file import load_recipe
from diffcse_scale.runs import claim
from diffcse_scale.runs.claim import FolderInUse
from diffcse_scale.runs.directory import RunDirectory
from diffcse_scale.runs.incarnation import Ownership, incarnations
from tests.support.file_events import FileEvents, fail, variable
from tests.support.forks import Fork, wait_for_all
from tests.support.launch import PROGRAMS, Ranks, launch, metrics

RECIPE = load_recipe("quickstart")
CONTENTS = {"data_fingerprint": "abc", "development_fingerprint": "def", "models_fingerprint": "ghi"}


@pytest.fixture
def on_host(tmp_path, monkeypatch):
    """What is done after a call of it is done on the host of that name, which shares no locks with others."""
    take = Lock.take

    def change(name: str, job: str | None = None, restart: int = 0) -> None:
        (tmp_path / name).mkdir(exist_ok=True)
        monkeypatch.setattr(claim.Lock, "take", lambda path: take(tmp_path / name / path.name))
        monkeypatch.setenv("SLURMD_NODENAME", name)
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(restart))
        monkeypatch.delenv("SLURM_JOB_ID", raising=False)
        if job is not None:
            monkeypatch.setenv("SLURM_JOB_ID", job)

    return change


def opened(tmp_path: Path) -> RunDirectory:
    return RunDirectory.open(str(tmp_path / "run"), RECIPE, start="auto")


def test_of_two_that_look_before_either_has_written_one_has_the_run(tmp_path, monkeypatch, on_host):
    begin, other = Ownership.begin, []

    def after_another(self):
        monkeypatch.setattr(Ownership, "begin", begin)
        on_host("second")
        other.append(opened(tmp_path))
        on_host("first")
        return begin(self)

    on_host("first")
    monkeypatch.setattr(Ownership, "begin", after_another)
    with pytest.raises(FolderInUse, match=r"was being written by process \d+ on second \d+ seconds ago; stop it, or"):
        opened(tmp_path)
    assert other[0].owned()
    assert [entry.host for entry in incarnations(tmp_path / "run" / "incarnations.jsonl")] == ["second"]


def test_of_two_restarts_of_a_job_the_later_has_the_run_in_whatever_order_they_come(tmp_path, on_host):
    on_host("second", "7", restart=2)
    later = opened(tmp_path)
    on_host("first", "7", restart=1)
    with pytest.raises(RunEnded, match="A later incarnation has taken over") as end:
        opened(tmp_path)
    assert end.value.exit_code == ExitCode.SUPERSEDED and later.owned()


def test_a_third_job_does_not_take_the_run_from_the_one_that_has_taken_it_over(tmp_path, on_host):
    on_host("first", "7")
    older = opened(tmp_path)
    on_host("first", "7", restart=1)
    newer = opened(tmp_path)
    assert newer.owned() and newer.ownership.lock is None
    older.ownership.lock.release()  # it has noticed, and left
    for host in ("first", "second"):
        on_host(host, "8")
        with pytest.raises(FolderInUse, match=r"written by job 7 \(restart 1\)"):
            _as_another_process(opened, tmp_path)
    assert newer.owned()


def _as_another_process(do, *arguments):
    """On one host the number of a process that lives tells the rest; this one stands for two."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(claim, "_is_this_process", lambda owner, now: False)
        return do(*arguments)


def test_the_lock_that_an_older_incarnation_had_is_taken_when_it_has_gone(tmp_path, monkeypatch, on_host):
    monkeypatch.setattr(claim, "SIGN", 0.01)
    on_host("first", "7")
    older = opened(tmp_path)
    on_host("first", "7", restart=1)
    with opened(tmp_path) as newer:
        assert newer.ownership.lock is None
        older.ownership.lock.release()
        deadline = time.monotonic() + 10
        while newer.ownership.lock is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        on_host("first", "8")
        with pytest.raises(FolderInUse, match=r"is being written by job 7 \(restart 1\)"):
            opened(tmp_path)


def test_who_waits_long_for_a_disk_still_gives_signs_of_life(tmp_path, monkeypatch, on_host):
    monkeypatch.setattr(claim, "SIGN", 0.01)
    on_host("first", "7")
    with opened(tmp_path) as run:
        for name in ("incarnations.jsonl", "status.json"):
            os.utime(run.path / name, (1.0, 1.0))
        deadline = time.monotonic() + 10
        while (run.path / "incarnations.jsonl").stat().st_mtime < 2:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        on_host("second", "8")
        with pytest.raises(FolderInUse, match=r"written by job 7 .* on first \d+ seconds ago"):
            opened(tmp_path)


def test_without_signs_for_a_minute_a_run_of_another_host_is_dead(tmp_path, on_host):
    on_host("first", "7")
    run = opened(tmp_path)
    for name in ("incarnations.jsonl", "status.json"):
        os.utime(run.path / name, (1.0, 1.0))
    on_host("second", "8")
    assert opened(tmp_path).owned() and not run.owned()


def _another_process(folder: Path) -> subprocess.Popen[str]:
    """A process of this host that has the run, until its input ends."""
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from diffcse_scale.runs.claim import claim\n"
        "from diffcse_scale.runs.incarnation import Incarnation\n"
        "ownership = claim(Path(sys.argv[1]), Incarnation())\n"
        "print('claimed', flush=True)\n"
        "sys.stdin.read()\n"
    )
    folder.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "claimed\n"
    return process


@pytest.mark.slow
@pytest.mark.parametrize("code", [None, errno.ENOSYS, errno.ENOLCK], ids=["unlinked", "ENOSYS", "ENOLCK"])
def test_on_one_host_a_process_that_lives_has_its_run_though_its_lock_is_lost(tmp_path, monkeypatch, code):
    process = _another_process(tmp_path / "run")
    try:
        if code is None:
            (tmp_path / "run" / ".lock").unlink()
        else:
            monkeypatch.setattr(fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError(code, os.strerror(code))))
        with pytest.raises(FolderInUse, match=f"is being written by process {process.pid} on "):
            opened(tmp_path)
    finally:
        process.kill()
        process.wait()
    assert opened(tmp_path).owned()  # at once: nobody waits for what has been killed


def test_a_file_system_without_locks_holds_no_run_up(tmp_path, monkeypatch):
    def refuse(descriptor, operation):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", refuse)
    run = opened(tmp_path)
    assert run.owned() and run.ownership.lock is None


def test_no_single_error_of_a_file_server_makes_a_run_anothers_or_loses_a_row(tmp_path, monkeypatch):
    """Each look at incarnations.jsonl fails once, from the opening of a run to its result."""
    monkeypatch.setattr("diffcse_scale.runs.directory.environment", dict)  # which takes longest

    def whole(folder: Path, at: int) -> int:
        with FileEvents([folder], fail(at, errno.ESTALE), named="incarnations.jsonl", reads=True) as events:
            run = RunDirectory.open(str(folder), RECIPE, start="auto")
            run.describe(RECIPE, **CONTENTS, precision="float32")
            for step in range(3):
                run.metrics.write({"step": step})
            run.finish(steps=3)
        assert [row["step"] for row in run.metrics.rows()] == [0, 1, 2]
        assert json.loads((folder / "status.json").read_text())["state"] == "finished"
        assert (folder / "result.json").is_file()
        return events.count

    count = whole(tmp_path / "truth", 0)
    assert count > 10
    for at in range(1, count + 1):
        whole(tmp_path / str(at), at)


def test_a_file_server_that_goes_on_failing_is_named_and_nothing_is_dropped(tmp_path, monkeypatch):
    monkeypatch.setattr(patience, "PATIENCE", 0.05)
    run = opened(tmp_path)
    with FileEvents([tmp_path], fail(1, errno.EIO, times=10**6), named="incarnations.jsonl", reads=True):
        for do in (lambda: run.metrics.write({"step": 1}), run.check_owned, run.finish):
            with pytest.raises(OSError) as error:
                do()
            assert error.value.filename == str(run.path / "incarnations.jsonl")
        run.status.update(now=True, state="training")  # a sign of life ends nothing
        with pytest.raises(InputError, match="cannot be read or written: input/output error"):
            opened(tmp_path)
    assert not (run.path / "result.json").exists()


def test_another_rank_of_an_older_incarnation_does_not_have_the_last_word(tmp_path, monkeypatch, on_host):
    on_host("first", "7")
    older = opened(tmp_path)
    on_host("second", "7", restart=1)
    newer = opened(tmp_path)
    monkeypatch.setattr("diffcse_scale.runs.directory.is_main", lambda: False)
    older.failed("killed", ExitCode.FAILED)
    assert json.loads((newer.path / "status.json").read_text())["state"] == "preparing"


def _race(me: str, folder: Path, rounds: int) -> None:
    """Open run after run at the same moment as the others, on a host that shares no locks with theirs."""
    os.environ["SLURMD_NODENAME"] = me
    take = Lock.take
    claim.Lock.take = lambda path: take(folder / me / f"{path.parent.name}.lock")  # type: ignore[method-assign, assignment]

    def together(word: str) -> None:
        (folder / me / word).touch()
        while len(list(folder.glob(f"*/{word}"))) < len(HOSTS):
            pass

    for number in range(rounds):
        run, outcome = None, "has it"
        together(f"ready-{number}")
        try:
            run = RunDirectory.open(str(folder / f"run-{number}"), RECIPE, start="auto")
        except FolderInUse as error:
            outcome = str(error)
        (folder / me / f"outcome-{number}").write_text(outcome)
        together(f"done-{number}")
        if run is not None:
            run.metrics.write({"step": 0, "host": me})


def test_a_folder_that_another_start_makes_at_this_moment_is_not_taken_for_something_else(tmp_path, monkeypatch):
    """Between two looks at the folder it appears: first it is no folder, and then it exists."""
    is_dir = Path.is_dir

    def look(path: Path) -> bool:
        there = is_dir(path)
        if path == tmp_path / "run":
            os.makedirs(path, exist_ok=True)
        return there

    monkeypatch.setattr(Path, "is_dir", look)
    assert opened(tmp_path).path == tmp_path / "run"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "run").touch()
    with pytest.raises(InputError, match="other/run exists and is not a run of this program"):
        opened(tmp_path / "other")


HOSTS = ("first", "second", "third")


@pytest.mark.slow
def test_of_processes_that_begin_at_once_without_shared_locks_exactly_one_writes(tmp_path):
    rounds = 60
    for host in HOSTS:
        (tmp_path / host).mkdir()
    said = tmp_path / "said"
    assert wait_for_all([Fork(_race, host, tmp_path, rounds, output=said) for host in HOSTS]) == 0, said.read_text()
    lines = 0
    for number in range(rounds):
        outcomes = {host: (tmp_path / host / f"outcome-{number}").read_text() for host in HOSTS}
        winners = [host for host, outcome in outcomes.items() if outcome == "has it"]
        assert len(winners) == 1, outcomes
        assert all(f" on {winners[0]}" in outcome for host, outcome in outcomes.items() if host != winners[0])
        rows = [json.loads(line) for line in (tmp_path / f"run-{number}" / "metrics.jsonl").read_text().splitlines()]
        assert rows == [{"step": 0, "host": winners[0]}]
        lines += len((tmp_path / f"run-{number}" / "incarnations.jsonl").read_text().splitlines())
    assert lines > rounds  # some did look before another had written


@pytest.mark.slow
def test_of_two_trainings_that_begin_at_once_without_shared_locks_one_is_as_if_alone(toy_world, tmp_path):
    def begun(run: Path, name: str) -> Ranks:
        arguments = ("--recipe", str(toy_world / "toy.yaml"), "--output", str(run), "--auto-resume")
        variables = {"LOCKS": str(tmp_path / f"locks-{name}"), "SLURMD_NODENAME": name}
        return Ranks(tmp_path / name, *arguments, program=PROGRAMS / "lockless_program.py", **variables)

    with begun(tmp_path / "truth", "alone") as alone:
        assert alone.wait() == [ExitCode.FINISHED] * 2, alone.output()
    with begun(tmp_path / "run", "first") as first, begun(tmp_path / "run", "second") as second:
        codes = sorted([first.wait(), second.wait()])
    assert codes == [[ExitCode.FINISHED] * 2, [ExitCode.MISTAKE] * 2], first.output() + second.output()
    assert "seconds ago; stop it, or wait" in first.output() + second.output()
    assert metrics(tmp_path / "run") == metrics(tmp_path / "truth")
    assert (tmp_path / "run" / "result.json").read_bytes() == (tmp_path / "truth" / "result.json").read_bytes()


@pytest.mark.slow
def test_a_training_whose_file_server_fails_once_is_as_if_it_had_not_and_for_long_says_so(
    toy_world, tmp_path, monkeypatch
):
    def trained(name: str, **asked: object) -> tuple[int, str, Path]:
        run = tmp_path / name
        events = variable([run], named="incarnations.jsonl", reads=True, log=str(tmp_path / "log"), **asked)
        monkeypatch.setenv(*events.popitem())
        (tmp_path / "log").write_text("")
        arguments = ("--recipe", str(toy_world / "toy.yaml"), "--output", str(run))
        ended = launch(*arguments, ranks=1, program=PROGRAMS / "counted_program.py")
        return ended.returncode, ended.stdout, run

    code, said, truth = trained("truth")
    assert code == ExitCode.FINISHED, said
    count = len((tmp_path / "log").read_text().splitlines())
    for at in (1, count // 2, count):
        code, said, run = trained(f"once-{at}", do="ESTALE", at=at)
        assert code == ExitCode.FINISHED, said
        assert metrics(run) == metrics(truth)
        assert (run / "result.json").read_bytes() == (truth / "result.json").read_bytes()
    code, said, run = trained("long", do="ESTALE", at=count // 2, times=10**6)
    assert code == ExitCode.MISTAKE and "Traceback" not in said, said
    assert f"{run / 'incarnations.jsonl'}: Stale file handle" in said and "incarnation has" not in said
