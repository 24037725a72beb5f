"""An output folder is never written over."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile

import pytest
from torch.distributed import DistBackendError

from diffcse_scale.export import export_sentence_transformer
from diffcse_scale.foundation.errors import InputError, RunEnded
from diffcse_scale.foundation.exit_codes import ExitCode
from diffcse_scale.recipe_file import load_recipe
from diffcse_scale.runs.directory import FolderInUse, RunDirectory
from diffcse_scale.runs.metrics_file import MetricsFile
from diffcse_scale.runs.read import read_runs
from tests.support.tiny_models import tiny_bert, tiny_tokenizer

RECIPE = load_recipe("quickstart")
CONTENTS = {"data_fingerprint": "abc", "development_fingerprint": "def", "models_fingerprint": "ghi"}
FACTS = {**CONTENTS, "precision": "float32"}


def started(path, recipe=RECIPE, facts=None):
    """A run that has got past its checks."""
    run = RunDirectory.open(path, recipe, start="new")
    run.describe(recipe, **(FACTS if facts is None else facts))
    return run


def test_without_a_name_runs_are_numbered(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runs = [started(None) for _ in range(3)]
    names = [run.path.as_posix() for run in runs]
    assert names == ["runs/quickstart", "runs/quickstart-2", "runs/quickstart-3"]


def test_a_folder_with_a_run_is_refused_unless_it_is_resumed(tmp_path):
    folder = str(tmp_path / "run")
    started(folder)
    with pytest.raises(InputError, match="continue it with --resume"):
        RunDirectory.open(folder, RECIPE, start="new")
    assert str(RunDirectory.open(folder, RECIPE, start="resume").path) == folder


@pytest.mark.parametrize("start", ["new", "resume", "auto"])
def test_another_recipes_run_is_refused_and_the_difference_shown(tmp_path, start):
    folder = str(tmp_path / "run")
    started(folder)
    other = load_recipe("quickstart", ["optimizer.clip=2.0", "log_every=7"])
    with pytest.raises(InputError, match=r"holds a run of another recipe.*optimizer.clip: 2.0, not 1.0\)"):
        RunDirectory.open(folder, other, start)


@pytest.mark.parametrize("knows", [True, False], ids=["", "of an earlier version"])
def test_a_recipe_that_is_cut_is_not_called_another_recipe(tmp_path, knows):
    """Cut at the end of a line, its last fields would be taken for their defaults, by a resume as by a report."""
    run = started(str(tmp_path / "run"))
    saved, record = run.path / "recipe.yaml", run.path / "run.json"
    lines = saved.read_text().splitlines(keepends=True)
    if not knows:
        record.write_text(json.dumps({**FACTS, "plan": {"steps": 1}}))
    del run
    for kept in (0, 3, len(lines) // 2, len(lines) - 1):
        saved.write_text("".join(lines[:kept]))
        for read in (
            lambda: RunDirectory.open(str(tmp_path / "run"), RECIPE, "auto"),
            lambda: read_runs([saved.parent]),
        ):
            if kept == len(lines) - 1 and not knows:
                continue
            said = "has changed since the run began" if knows else "restore it|must be a mapping|missing"
            with pytest.raises(InputError, match=rf"recipe.yaml.* ({said})") as told:
                read()
            assert "another recipe" not in str(told.value) and len(str(told.value)) < 300


def test_of_many_differences_a_few_are_shown(tmp_path):
    started(str(tmp_path / "run"))
    other = [f"optimizer.{name}" for name in ("clip=3", "learning_rate=2", "warmup=0.5", "weight_decay=0.3")]
    with pytest.raises(InputError, match=r"and 3 more\)") as told:
        RunDirectory.open(
            str(tmp_path / "run"),
            load_recipe("quickstart", [*other, "seed=9", "max_steps=7", "data.limit=9", "data.max_length=9"]),
            "auto",
        )
    assert str(told.value).count(", not ") == 5


def test_what_does_not_touch_the_result_may_change_on_resume(tmp_path):
    folder = str(tmp_path / "run")
    started(folder)
    RunDirectory.open(folder, load_recipe("quickstart", ["log_every=7", "batch.exchange=gather"]), start="resume")


@pytest.mark.parametrize("start", ["resume", "auto"])
def test_a_run_whose_checkpoints_are_gone_never_begins_anew_in_silence(tmp_path, start):
    folder = tmp_path / "run"
    run = started(str(folder))
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "latest").write_text("none\n")
    run.metrics.write({"step": 1, "loss": 2.0})
    del run  # and its lock
    RunDirectory.open(str(folder), RECIPE, start)  # killed before its first checkpoint: nothing is missing
    (folder / "checkpoints" / "latest").unlink()
    with pytest.raises(InputError, match=r"has been trained, but .*checkpoints/latest is missing; restore its folder"):
        RunDirectory.open(str(folder), RECIPE, start)
    (folder / "metrics.jsonl").unlink()
    RunDirectory.open(str(folder), RECIPE, start)  # it had not begun to train


def test_rows_are_on_the_disk_before_a_result_is(tmp_path, monkeypatch):
    run = started(str(tmp_path / "run"))
    run.metrics.write({"step": 1, "loss": 2.0})
    synced, sync = [], os.fsync

    def noted(descriptor):
        synced.append(os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    run.finish(steps=1)
    assert synced.index("metrics.jsonl") < synced.index("result.json.tmp")


def test_a_start_that_a_mistake_stopped_leaves_the_folder_free(tmp_path):
    folder = str(tmp_path / "run")
    RunDirectory.open(folder, RECIPE, start="new")
    assert str(RunDirectory.open(folder, load_recipe("quickstart", ["seed=7"]), start="new").path) == folder


@pytest.mark.parametrize("half", ["run.json.tmp", "recipe.yaml.tmp", "status.json.tmp", "status.json.77.tmp"])
def test_what_a_kill_left_half_written_leaves_the_folder_free(tmp_path, half):
    folder = tmp_path / "run"
    RunDirectory.open(str(folder), RECIPE, start="new")
    (folder / half).write_text("{")
    started(str(folder))


@pytest.mark.parametrize("name", ["run.json", "status.json", "hang", "recipe.yaml.tmp"])
def test_files_of_another_program_that_have_our_names_are_not_written_over(tmp_path, name):
    (tmp_path / name).write_text("precious")
    with pytest.raises(InputError, match="exists and is not a run of this program"):
        RunDirectory.open(str(tmp_path), RECIPE, start="new")
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [(name, "precious")]


def test_a_folder_in_use_names_its_user(tmp_path):
    folder = str(tmp_path / "run")
    run = RunDirectory.open(folder, RECIPE, start="new")
    with pytest.raises(InputError, match=r"is being written by process \d+ on "):
        RunDirectory.open(folder, RECIPE, start="new")
    del run
    RunDirectory.open(folder, RECIPE, start="new")


@pytest.mark.parametrize("changed", [*({name: "xyz"} for name in CONTENTS), {"precision": "bfloat16"}])
def test_another_corpus_other_models_pairs_or_precision_are_not_resumed(tmp_path, changed):
    folder = str(tmp_path / "run")
    started(folder)
    run = RunDirectory.open(folder, RECIPE, start="resume")
    with pytest.raises(InputError, match=next(iter(changed)).replace("_", " ")):
        run.describe(RECIPE, **{**FACTS, **changed})


def test_a_run_is_resumed_with_what_it_read_wherever_that_lies_now(tmp_path):
    """The same bytes under another name are the same corpus; what decides the result may not change with it."""
    folder = str(tmp_path / "run")
    started(folder)
    moved = ["data.files=copy.txt", "evaluation.data=pairs.tsv", "model.generator=./generator"]
    RunDirectory.open(folder, load_recipe("quickstart", moved), start="resume").describe(RECIPE, **FACTS)
    with pytest.raises(InputError, match=r"run of another recipe.*\(this recipe has seed: 7, not \d+\)"):
        RunDirectory.open(folder, load_recipe("quickstart", [*moved, "seed=7"]), start="resume")


def test_a_corpus_that_loses_fewer_rows_than_before_says_so(tmp_path):
    """An earlier version took a U+FFFD of the text for bytes that are not UTF-8."""
    folder = str(tmp_path / "run")
    started(folder, facts={**FACTS, "corpus": {"cleaning": {"undecodable": 5}}})
    run = RunDirectory.open(folder, RECIPE, start="resume")
    for now, said in ((2, "without 3 of the rows that were left out as undecodable"), (5, "now it is xyz; restore")):
        facts = {**FACTS, "data_fingerprint": "xyz", "corpus": {"cleaning": {"undecodable": now}}}
        with pytest.raises(InputError, match=said):
            run.describe(RECIPE, **facts)


def test_a_run_of_an_earlier_version_is_resumed_under_its_own_names_if_its_batches_are_the_same(tmp_path, caplog):
    """Its record has a fingerprint of paths and times, and its corpus had the rows that are left out now."""
    folder = str(tmp_path / "run")
    earlier = {"data_fingerprint": "of path and time", "precision": "float32"}
    started(folder, facts=earlier)
    with pytest.raises(InputError, match=r"data\.files"):
        RunDirectory.open(folder, load_recipe("quickstart", ["data.files=copy.txt"]), start="resume")
    run = RunDirectory.open(folder, RECIPE, start="resume")
    with pytest.raises(InputError, match="begun by an earlier version, which kept 3 sentences"):
        run.describe(RECIPE, **FACTS, corpus={"equal": 3})
    run.describe(RECIPE, **FACTS, corpus={"equal": 0})
    assert "begun by an earlier version" in caplog.text
    with pytest.raises(InputError, match="cannot be resumed: its data fingerprint was"):  # from now on it is known
        run.describe(RECIPE, **{**FACTS, "data_fingerprint": "xyz"}, corpus={"equal": 0})


def test_each_resume_is_recorded_beside_what_the_run_began_with(tmp_path):
    folder = str(tmp_path / "run")
    started(folder)
    for world_size in (4, 1):
        run = RunDirectory.open(folder, RECIPE, start="resume")
        run.describe(RECIPE, **FACTS, plan={"world_size": world_size})
        del run
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert "plan" not in record
    assert [entry["plan"]["world_size"] for entry in record["resumed"]] == [4, 1]


def test_a_folder_with_other_files_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="is not a run of this program"):
        RunDirectory.open(str(tmp_path), RECIPE, start="new")


def test_resuming_nothing_is_an_error(tmp_path):
    with pytest.raises(InputError, match="no run to resume"):
        RunDirectory.open(str(tmp_path / "absent"), RECIPE, start="resume")


def test_a_finished_run_is_not_resumed(tmp_path):
    run = started(str(tmp_path / "run"))
    run.finish(steps=1)
    with pytest.raises(InputError, match="has finished"):
        RunDirectory.open(str(tmp_path / "run"), RECIPE, start="resume")


def test_rows_of_steps_that_are_repeated_are_forgotten(tmp_path):
    file = MetricsFile(tmp_path / "metrics.jsonl")
    for step in (0, 2, 4, 6):
        file.write({"step": step})
    with file.path.open("a") as raw:
        raw.write('{"step": 8, "lo')  # cut short by a killed process
    file.keep(lambda row: row["step"] <= 4)
    assert [row["step"] for row in file.rows()] == [0, 2, 4]


def test_the_numbers_of_all_rows_are_columns(tmp_path):
    file = MetricsFile(tmp_path / "metrics.jsonl")
    assert file.series() == {}
    for row in (
        {"step": 0, "score": 7},
        {"step": 1, "loss": 0.1},
        {"step": 2, "loss": math.nan},
        {"step": 3, "loss": 4},
    ):
        file.write(row)
    found = file.series()
    assert list(found) == ["step", "score", "loss"]
    assert found["step"].steps.tolist() == found["step"].values.tolist() == [0, 1, 2, 3]
    assert found["loss"].steps.tolist() == [1, 2, 3] and math.isnan(found["loss"].values[1])
    assert found["loss"].known.steps.tolist() == [1, 3] and found["loss"].known.values.tolist() == [0.1, 4]


def test_rows_of_an_incarnation_that_does_not_know_yet_go_nowhere(tmp_path):
    older, newer = MetricsFile(tmp_path / "metrics.jsonl"), MetricsFile(tmp_path / "metrics.jsonl")
    older.write({"step": 1})
    newer.keep(lambda row: True)
    newer.write({"step": 2})
    older.write({"step": 2, "mine": True})
    assert list(newer.rows()) == [{"step": 1}, {"step": 2}]


def test_auto_begins_continues_and_sees_that_a_run_is_done(tmp_path):
    folder = str(tmp_path / "run")
    run = RunDirectory.open(folder, RECIPE, start="auto")
    assert not run.begun
    run.describe(RECIPE, **FACTS)
    del run
    run = RunDirectory.open(folder, RECIPE, start="auto")
    assert run.begun
    run.finish(steps=1)
    del run
    with pytest.raises(RunEnded, match="has finished") as end:
        RunDirectory.open(folder, RECIPE, start="auto")
    assert end.value.exit_code == ExitCode.FINISHED


def _slurm(monkeypatch, restart, job="7"):
    monkeypatch.setenv("SLURM_JOB_ID", job)
    monkeypatch.setenv("SLURM_RESTART_COUNT", str(restart))


def test_a_requeued_job_takes_the_run_over_from_its_older_incarnation_that_lives_on(tmp_path, monkeypatch):
    folder = str(tmp_path / "run")
    _slurm(monkeypatch, 0)
    older = started(folder)
    assert older.owned()
    _slurm(monkeypatch, 1)
    newer = RunDirectory.open(folder, RECIPE, start="auto")
    assert newer.owned() and not older.owned()
    assert json.loads((newer.path / "status.json").read_text())["restarts"] == 1


def test_another_job_does_not(tmp_path, monkeypatch):
    folder = str(tmp_path / "run")
    _slurm(monkeypatch, 0)
    older = started(folder)
    _slurm(monkeypatch, 1, job="8")
    with pytest.raises(FolderInUse, match=r"is being written by job 7 \(restart 0\), process \d+ on "):
        RunDirectory.open(folder, RECIPE, start="auto")
    assert older.owned()


def test_without_locks_across_machines_a_heartbeat_tells_that_a_run_is_alive(tmp_path, monkeypatch):
    folder = str(tmp_path / "run")
    _slurm(monkeypatch, 0)
    monkeypatch.setenv("SLURMD_NODENAME", "far-away")
    older = started(folder)
    older.ownership.lock.release()  # as seen from another machine on a file system without locks
    _slurm(monkeypatch, 0, job="8")
    monkeypatch.setenv("SLURMD_NODENAME", "here")
    with pytest.raises(FolderInUse, match=r"job 7 .* on far-away \d+ seconds ago; stop it, or wait"):
        RunDirectory.open(folder, RECIPE, start="auto")
    older.status.update(now=True, state="stopped")
    assert RunDirectory.open(folder, RECIPE, start="auto").owned()


def test_an_incarnation_that_was_superseded_before_it_began_writes_nothing(tmp_path, monkeypatch):
    folder = str(tmp_path / "run")
    _slurm(monkeypatch, 0)
    older = RunDirectory.open(folder, RECIPE, start="auto")
    _slurm(monkeypatch, 1)
    newer = RunDirectory.open(folder, RECIPE, start="auto")
    newer.describe(RECIPE, **FACTS)
    record = (newer.path / "run.json").read_bytes()
    newer.metrics.write({"step": 1})
    older.metrics.keep(lambda row: False)
    older.metrics.write({"step": 1, "mine": True})
    assert list(newer.metrics.rows()) == [{"step": 1}]
    with pytest.raises(RunEnded, match="A later incarnation has taken over") as end:
        older.describe(RECIPE, **FACTS, plan="mine")
    assert end.value.exit_code == ExitCode.SUPERSEDED and (newer.path / "run.json").read_bytes() == record


def test_a_stop_file_that_was_meant_for_the_run_before_is_taken_away(tmp_path):
    run = started(str(tmp_path / "run"))
    run.stop_file.touch()
    os.utime(run.stop_file, (0, 0))
    del run
    assert not RunDirectory.open(str(tmp_path / "run"), RECIPE, start="resume").stop_file.exists()


def test_how_a_run_ended_early_and_why_is_the_last_word_of_the_status(tmp_path):
    folder = str(tmp_path / "run")
    for error, state, code in (
        (ValueError("out of luck\nsecond line"), "failed", 1),
        (RunEnded("enough", ExitCode.STOPPED), "stopped", 74),
        (RunEnded("not finite", ExitCode.NOT_FINITE), "failed", 79),
        (InputError("a mistake"), "failed", 2),
        (DistBackendError("NCCL error: invalid usage"), "failed", 1),  # which is no loss of another rank
    ):
        with pytest.raises(type(error)), RunDirectory.open(folder, RECIPE, start="auto") as run:
            run.status.update(now=True, state="training")
            raise error
        status = json.loads((run.path / "status.json").read_text())
        assert (status["state"], status["exit_code"]) == (state, code)
        assert status["message"] == str(error).splitlines()[0]
        run.ownership.lock.release()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become an ordinary user, whom permissions bind")
def test_a_folder_that_cannot_be_written_is_one_sentence():
    program = (
        "import os, sys\n"
        "from diffcse_scale.foundation.errors import InputError\n"
        "from diffcse_scale.recipe_file import load_recipe\n"
        "from diffcse_scale.runs.directory import RunDirectory\n"
        "os.setuid(65534)\n"
        "for folder in sys.argv[1:]:\n"
        "    try: RunDirectory.open(folder, load_recipe('quickstart'), start='new')\n"
        "    except InputError as error: print(error)\n"
    )
    with tempfile.TemporaryDirectory() as read_only, tempfile.TemporaryDirectory() as closed:
        os.chmod(read_only, 0o555)
        os.chmod(closed, 0o700)
        runs = [f"{read_only}/run", f"{closed}/run"]
        result = subprocess.run([sys.executable, "-c", program, *runs], capture_output=True, text=True, check=False)
    for run, told in zip(runs, result.stdout.splitlines(), strict=True):
        assert told.startswith(f"Output folder {run} cannot be read or written: permission denied; check")


def test_what_training_does_not_use_of_its_encoders_folder_is_kept(tmp_path):
    export_sentence_transformer(tiny_bert(), tiny_tokenizer(), "mean", 16, tmp_path / "start")
    recipe = load_recipe(
        "quickstart", [f"model.encoder={tmp_path / 'start'}", "model.pooling=cls", "evaluation.max_length=16"]
    )
    run = started(str(tmp_path / "run"), recipe)
    record = json.loads((run.path / "run.json").read_text())
    assert record["left_out"] == ["its mean pooling (model.pooling is cls)"]
