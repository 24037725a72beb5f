"""How a run ends in which something fails: the first failure is told, with its rank, and none that only follows."""

from __future__ import annotations

import errno
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from diffcse_scale.foundation.environment import host_name
from diffcse_scale.foundation.exit_codes import ExitCode
from tests.support.failing_hook import VARIABLE
from tests.support.file_events import VARIABLE as EVENTS
from tests.support.file_events import variable
from tests.support.launch import PROGRAMS, Ranks, launch, metrics

COUNTED = PROGRAMS / "counted_program.py"
HOOK = "tests.support.failing_hook:Fails"


def status(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "status.json").read_text())
    return found


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_an_error_of_one_rank_is_told_as_its_own_and_the_others_loss_of_it_is_not(
    toy_world: Path, tmp_path: Path, rank: int
) -> None:
    run = tmp_path / "run"
    arguments = ("--recipe", str(toy_world / "toy.yaml"), "--output", str(run), "--hook", HOOK)
    with Ranks(tmp_path / "said", *arguments, **{VARIABLE: f"{rank} EDQUOT"}) as ranks:
        assert ranks.wait() == [ExitCode.MISTAKE] * 2, ranks.output()
    said = (
        f"Rank {rank} on {host_name()}: scratch/file: Disk quota exceeded; free disk space, or have the quota raised."
    )
    assert (status(run)["state"], status(run)["exit_code"], status(run)["message"]) == ("failed", 2, said)
    output = ranks.output()
    assert "Traceback" not in output and "closed by peer" not in output
    own = ranks.outputs[rank].read_text().strip().splitlines()[-1]
    assert own.startswith("error" if rank == 0 else "error on rank 1") and "scratch/file: Disk quota exceeded" in own
    assert rank == 0 or ranks.outputs[0].read_text().strip().splitlines()[-1] == f"error: {said}"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "code", "what"),
    [
        # what a rank does is told once a second: the last that was told may be older than the training
        ("KILL", ExitCode.LOST, "ended without a message while (training|preparing); check its last output"),
        ("STOP", ExitCode.HUNG, "has not responded for "),
    ],
)
@pytest.mark.parametrize(("count", "rank"), [(2, 0), (2, 1), (8, 0), (8, 5)])
def test_a_rank_that_ends_or_stops_without_a_word_is_named_by_the_others_in_one_line(
    toy_world: Path, tmp_path: Path, count: int, rank: int, how: str, code: ExitCode, what: str
) -> None:
    run = tmp_path / "run"
    arguments = ("--recipe", str(toy_world / "toy.yaml"), "--output", str(run), "--hook", HOOK, "--hang-timeout", "10")
    arguments += ("evaluation.data=null",)
    with Ranks(tmp_path / "said", *arguments, count=count, **{VARIABLE: f"{rank} {how}"}) as ranks:
        others = [process for number, process in enumerate(ranks.processes) if number != rank]
        assert [process.wait(120) for process in others] == [code] * (count - 1), ranks.output()
    (line,) = [line for line in ranks.output().splitlines() if line.startswith("error")]
    assert re.match(f"error: Rank {rank} on {re.escape(host_name())} {what}", line), line
    assert (status(run)["state"], status(run)["exit_code"]) == ("failed", code)
    assert status(run)["message"] == line.removeprefix("error: ")
    assert "Traceback" not in ranks.output() and "closed by peer" not in ranks.output()


@pytest.fixture(scope="module")
def short(toy_world: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, int]:
    """A recipe of four steps, a finished run of it, and how many events its files are."""
    folder = tmp_path_factory.mktemp("short")
    recipe = yaml.safe_load((toy_world / "toy.yaml").read_text())
    recipe |= {"max_steps": 4, "checkpoint_every": 1, "keep_checkpoints": 1}
    recipe["evaluation"] |= {"every": 2}
    (folder / "short.yaml").write_text(yaml.safe_dump(recipe))
    done = counted(folder / "short.yaml", folder / "run", log=str(folder / "events"))
    assert done.returncode == 0, done.stdout
    return folder / "short.yaml", folder / "run", len((folder / "events").read_text().splitlines())


def counted(recipe: Path, run: Path, do: str = "", at: int = 0, **options: Any) -> Any:
    """A run, begun or gone on with, on one rank, with an error of the disk."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(EVENTS, variable([run], do, at, **options)[EVENTS])
        return launch("--recipe", str(recipe), "--output", str(run), "--auto-resume", ranks=1, program=COUNTED)


@pytest.mark.slow
@pytest.mark.parametrize("share", range(12))
@pytest.mark.parametrize(("error", "times"), [("EDQUOT", 10**6), ("EIO", 1)])
def test_an_error_of_the_disk_anywhere_is_one_sentence_and_the_run_goes_on_afterwards(
    short: tuple[Path, Path, int], tmp_path: Path, error: str, times: int, share: int
) -> None:
    """A disk that stays full from some moment on, and one that fails once; a dozen moments of the whole run."""
    recipe, whole, events = short
    at = 1 + share * (events - 1) // 11
    done = counted(recipe, tmp_path / "run", error, at, times=times)
    assert done.returncode in (ExitCode.FINISHED, ExitCode.MISTAKE) and "Traceback" not in done.stdout, done.stdout
    if done.returncode:
        (said,) = [line for line in done.stdout.splitlines() if line.startswith("error: ")]
        assert os.strerror(getattr(errno, error)).lower() in said.lower() and str(tmp_path) in said
    again = counted(recipe, tmp_path / "run")
    assert again.returncode == 0, again.stdout
    assert metrics(tmp_path / "run") == metrics(whole)


@pytest.mark.slow
def test_an_old_checkpoint_that_cannot_be_deleted_is_told_and_ends_nothing(
    short: tuple[Path, Path, int], tmp_path: Path
) -> None:
    recipe, whole, _ = short
    only = {"only": "remove", "named": "checkpoints/step-00000001"}
    done = counted(recipe, tmp_path / "run", "EACCES", 1, times=10**6, **only)
    assert done.returncode == 0, done.stdout
    said = r"step-00000001.partial-\w+ is no longer needed but cannot be removed \(permission denied\); it stays\."
    assert re.search(said, done.stdout), done.stdout
    assert metrics(tmp_path / "run") == metrics(whole)


@pytest.mark.slow
def test_what_a_power_cut_took_of_the_metrics_and_of_the_best_does_not_bar_the_end(
    short: tuple[Path, Path, int], tmp_path: Path
) -> None:
    """Killed just before its result: the scores of step 0 are in the checkpoint, and so is the best encoder's digest.

    The newest checkpoint is that of step 3, and its best encoder that of step 2; step 4 may become the best or not.
    """
    recipe, whole, _ = short
    run = tmp_path / "run"
    assert counted(recipe, run, "kill", 1, named="result.json").returncode == -9
    rows = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(row for row in rows if json.loads(row)["step"] > 0))
    best = run / "best" / "step-00000002"
    kept = (best / "model.safetensors").read_bytes()
    (best / "model.safetensors").write_bytes(bytes(len(kept)))
    refused = counted(recipe, run)
    assert refused.returncode == ExitCode.MISTAKE, refused.stdout
    assert not (run / "result.json").exists()
    assert f"{best / 'model.safetensors'} is gone or damaged; restore {best}" in refused.stdout
    (best / "model.safetensors").write_bytes(kept)
    assert counted(recipe, run).returncode == 0
    before, expected = (json.loads((one / "result.json").read_text())["before"] for one in (run, whole))
    assert before == expected and before.keys() == {"dev_spearman", "dev_spearman_mean"}
    assert (run / "model" / "model.safetensors").read_bytes() == (whole / "model" / "model.safetensors").read_bytes()
