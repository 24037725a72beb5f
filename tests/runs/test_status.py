"""`status.json`: a reader never sees half of it, and a line for people tells what matters."""

from __future__ import annotations

import contextlib
import json
import os
import time

import pytest

from diffcse_scale.foundation.errors import InputError
from diffcse_scale.recipe_file import load_recipe
from diffcse_scale.runs.directory import CONTENTS, RunDirectory
from diffcse_scale.runs.status import StatusFile, read_status, status_line
from tests.support.small_disk import small_disk


def _status(**facts):
    known = {"state": "training", "step": 120, "steps": 312, "seconds_since": 0.5, "restarts": 0, "job": None}
    return {**known, **facts}


def test_a_change_of_state_is_written_at_once_and_progress_once_a_heartbeat(tmp_path):
    status = StatusFile(tmp_path / "status.json", state="preparing", job="7")
    status.update(state="training", step=0)
    status.update(state="training", step=1)
    assert read_status(tmp_path)["step"] == 0
    status.update(state="evaluating")
    found = read_status(tmp_path)
    assert (found["state"], found["step"], found["job"]) == ("evaluating", 1, "7")
    assert 0 <= found["seconds_since"] < 5 and abs(found["updated"] - time.time()) < 5
    assert "\n" not in (tmp_path / "status.json").read_text().rstrip("\n")


def test_the_last_sign_is_dated_by_the_file_systems_clock(tmp_path, monkeypatch):
    StatusFile(tmp_path / "status.json").update(now=True, state="training")
    now = time.time()
    with monkeypatch.context() as wrong:
        wrong.setattr(time, "time", lambda: now + 600)  # this machine is ten minutes ahead
        assert "NO SIGN OF LIFE" not in status_line(read_status(tmp_path))
    os.utime(tmp_path / "status.json", (now - 600, now - 600))
    assert "NO SIGN OF LIFE for 10 min" in status_line(read_status(tmp_path))
    assert [file.name for file in tmp_path.iterdir()] == ["status.json"]


def test_other_ranks_write_nothing(tmp_path):
    StatusFile(None).update(now=True, state="training")
    assert not list(tmp_path.iterdir())


def test_another_process_can_add_the_last_word(tmp_path):
    StatusFile(tmp_path / "status.json", step=9).update(now=True, state="training")
    StatusFile.found(tmp_path / "status.json").update(now=True, state="failed", message="rank 0 fell silent")
    found = read_status(tmp_path)
    assert (found["step"], found["state"], found["message"]) == (9, "failed", "rank 0 fell silent")


def test_a_status_that_cannot_be_written_does_not_stop_a_run(tmp_path):
    StatusFile(tmp_path / "gone" / "status.json").update(now=True, state="training")


def test_on_a_full_disk_the_last_word_takes_the_place_of_the_one_before(tmp_path):
    with small_disk(tmp_path / "disk", "64k") as mounted:
        if not mounted:
            pytest.skip("this user may not mount a small file system")
        status = StatusFile(tmp_path / "disk" / "status.json", step=9)
        status.update(now=True, state="training", message="x" * 500)
        with contextlib.suppress(OSError):
            (tmp_path / "disk" / "filler").write_bytes(bytes(1 << 20))
        status.update(now=True, state="evaluating")  # a heartbeat, which can be left out
        assert read_status(tmp_path / "disk")["state"] == "training"
        status.update(now=True, state="failed", message="no space", exit_code=2)
        found = read_status(tmp_path / "disk")
        assert (found["state"], found["message"]) == ("failed", "no space")
        assert sorted(file.name for file in (tmp_path / "disk").iterdir()) == ["filler", "status.json"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (None, "has no status.json"),
        ('{"state', "is not what this program writes"),
        ('{"updated": 1}', "has no state"),
        ('{"state": "training", "updated": NaN}', "has no state"),
        (
            '{"state": "training", "updated": 1, "step": "x"}',
            r"is not what this program writes \(step: input should be",
        ),
    ],
)
def test_what_is_no_run_is_one_sentence(tmp_path, text, problem):
    if text is not None:
        (tmp_path / "status.json").write_text(text)
    with pytest.raises(InputError, match=problem):
        read_status(tmp_path)


def test_the_line_has_step_rate_time_left_checkpoint_and_restarts():
    status = _status(
        sentences_per_second=1234.5, seconds_left=3725, last_checkpoint="step-00000100", restarts=2, job="7"
    )
    assert status_line(status) == (
        "training; step 120 of 312; 1,234 sentences/s; 1 h 02 min left; last checkpoint: step-00000100; "
        "restarts: 2; job 7"
    )


def test_the_line_says_when_there_is_no_sign_of_life_but_not_of_a_run_that_has_ended():
    assert status_line(_status(seconds_since=600)).endswith("NO SIGN OF LIFE for 10 min 00 s")
    assert "NO SIGN" not in status_line(_status(state="finished", seconds_since=600, seconds_left=0))


def test_a_failure_is_told_with_its_message():
    assert status_line(_status(state="failed", message="Rank 3 is silent")).endswith("Rank 3 is silent")


def test_the_file_is_json_for_programs(tmp_path):
    StatusFile(tmp_path / "status.json", steps=12).update(now=True, step=3, last_checkpoint=None)
    assert json.loads((tmp_path / "status.json").read_text())["last_checkpoint"] is None


@pytest.mark.parametrize("state", ["finished", "stopped", "training"])
def test_the_status_of_a_run_that_cannot_be_resumed_stays(tmp_path, state):
    """It is another start that failed, and not the run; of a run that was killed the status says what is left of it."""
    folder, recipe = tmp_path / "run", load_recipe("quickstart")
    facts = dict.fromkeys((*CONTENTS, "precision"), "the same")
    run = RunDirectory.open(str(folder), recipe, "new")
    run.describe(recipe, **facts)
    run.status.update(now=True, state=state, step=12, steps=14, last_checkpoint="step-00000010", message="so far")
    before = json.loads((folder / "status.json").read_text())
    del run
    with (
        pytest.raises(InputError, match="cannot be resumed: its data fingerprint was"),
        RunDirectory.open(str(folder), recipe, "resume") as run,
    ):
        run.describe(recipe, **{**facts, "data_fingerprint": "another"})
    after = json.loads((folder / "status.json").read_text())
    if state == "training":
        assert (after["state"], after["steps"], after["last_checkpoint"]) == ("failed", 14, "step-00000010")
        assert "cannot be resumed" in after["message"]
    else:
        assert {**after, "updated": 0} == {**before, "updated": 0}
