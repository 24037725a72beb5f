"""Trackers read back by their own readers: every number once, whatever kills and resumes lie between."""

from __future__ import annotations

import csv
import json
import logging
import os
import sqlite3
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from diffcse_scale.foundation.errors import InputError
from diffcse_scale.recipe_file import load_recipe
from diffcse_scale.runs.metrics_file import MetricsFile
from diffcse_scale.training import trackers, tracking
from diffcse_scale.training.trackers import TRACKERS, Tracker, check_trackers
from diffcse_scale.training.tracking import Tracking
from tests.support.launch import launch, metrics

START = {"corpus": "20 sentences | all", "sharding": "https://me:pass@host/a.txt", "first rows": "private text"}
RESULT = {"steps": 6, "best": {"step": 4, "dev_spearman": 61.5}, "before": {"dev_spearman": float("nan")}}
# a process that dies after step 5, whose newest checkpoint was made after step 4; then one that goes on to step 6
FIRST = [
    (0, {"dev_spearman": 40.0}),
    (2, {"loss": 1.0}),
    (4, {"loss": 0.5}),
    (4, {"dev_spearman": 61.5}),
    (5, {"loss": 9.0}),
]
SECOND = [(5, {"loss": 0.25, "rtd": None}), (6, {"loss": 0.125, "new": 1.0})]
ALL = {
    "dev_spearman": {0: 40.0, 4: 61.5},
    "loss": {2: 1.0, 4: 0.5, 5: 0.25, 6: 0.125},
    "new": {6: 1.0},
}


@pytest.fixture
def trainer(tmp_path: Path) -> SimpleNamespace:
    """What a hook reads of one, with a run folder and metrics.jsonl."""
    run = SimpleNamespace(
        path=tmp_path / "mine", metrics=MetricsFile(tmp_path / "mine" / "metrics.jsonl"), owned=lambda: True
    )
    run.path.mkdir()
    return SimpleNamespace(step=0, run=run, recipe=load_recipe("quickstart", ["data.files=hf_secretsecret/a.txt"]))


def process(trainer: Any, name: str, step: int, rows: list[tuple[int, dict[str, Any]]], end: bool) -> None:
    """One that begins after `step` and writes these rows; it dies, or has finished."""
    trainer.step = step
    hook = Tracking([name], START)

    def record(row: dict[str, Any]) -> None:
        trainer.run.metrics.write({"step": trainer.step, **row})
        hook.on_row(trainer, row)

    if step == 0:
        record(rows.pop(0)[1])  # of the untrained encoder, which is measured before
    else:
        trainer.run.metrics.keep(lambda row: row["step"] <= step)
    hook.on_start(trainer)
    for trainer.step, row in rows:
        record(row)
    if end:
        hook.on_end(trainer, RESULT)
        return
    (line,) = hook._lines
    deadline = time.monotonic() + 60
    while not line._queue.empty() and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(3 if name == "wandb" else 0.1)  # the last row is with the tracker, whose file W&B writes a second later


def two_processes(trainer: Any, name: str) -> Path:
    """What the tracker keeps of a run that was killed and resumed."""
    child = os.fork()
    if child == 0:
        try:
            process(trainer, name, 0, FIRST[:], end=False)
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    time.sleep(1.1 if name == "tensorboard" else 0)  # it sorts processes by the second in which they begin
    process(trainer, name, 4, SECOND[:], end=True)
    return trainer.run.path / "tracking" / name


def by_name(triples: Iterator[tuple[str, int, float]]) -> dict[str, dict[int, float]]:
    """Name to step to value; refuses a number that is there twice."""
    found: dict[str, dict[int, float]] = {}
    for name, step, value in triples:
        assert step not in found.setdefault(name, {}), (name, step)
        found[name][step] = value
    return found


def test_csv_has_a_row_for_each_of_metrics_jsonl(trainer: Any) -> None:
    folder = two_processes(trainer, "csv")
    with (folder / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    kept = [dict(row) for row in trainer.run.metrics.rows()]
    assert len(rows) == len(kept) == 6
    for row, expected in zip(rows, kept, strict=True):
        assert {name: float(value) for name, value in row.items() if value} == {
            name: value for name, value in expected.items() if value is not None
        }
    with (folder / "start.csv").open(newline="") as file:
        start = dict(csv.reader(file))
    assert start["optimizer.learning_rate"] == str(trainer.recipe.optimizer.learning_rate)
    assert start["corpus"] == START["corpus"] and start["sharding"] == "https://***@host/a.txt"
    assert not any("private" in value for value in start.values())  # text of the corpus stays where it is
    assert "secretsecret" not in (folder / "start.csv").read_text()


@pytest.mark.slow
def test_tensorboard_shows_the_numbers_of_the_resumed_run(trainer: Any) -> None:
    pytest.importorskip("tensorboard", reason="the extra tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(two_processes(trainer, "tensorboard")), {"tensors": 0, "scalars": 0})
    events.Reload()
    scalars = ((name, event.step, event.value) for name in events.Tags()["scalars"] for event in events.Scalars(name))
    assert by_name(scalars) == ALL
    texts = {name: events.Tensors(name)[-1].tensor_proto.string_val[0].decode() for name in events.Tags()["tensors"]}
    assert set(texts) == {"recipe/text_summary", "start/text_summary", "result/text_summary"}
    assert "| optimizer.learning_rate |" in texts["recipe/text_summary"]
    assert "61.5" in texts["result/text_summary"] and "secretsecret" not in str(texts) and "pass@" not in str(texts)


@pytest.mark.slow
def test_mlflow_goes_on_with_one_run(trainer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for library in ("mlflow", "sqlalchemy", "alembic"):
        pytest.importorskip(library, reason="the extra mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setattr(tracking, "PATIENCE", 60)
    two_processes(trainer, "mlflow")
    # not through its own library, whose histories hide nothing but are what the tracker asks
    with sqlite3.connect(tmp_path / "mlflow.db") as base:
        rows = base.execute("SELECT key, step, value FROM metrics").fetchall()
        parameters = dict(base.execute("SELECT key, value FROM params").fetchall())
        ((name, status),) = base.execute("SELECT name, status FROM runs").fetchall()
    found = by_name(iter(rows))
    # a tracker that only adds keeps what was sent before the kill
    assert {name: found[name] for name in ALL} == {**ALL, "loss": {**ALL["loss"], 5: 9.0}}
    assert found["result.best.dev_spearman"] == {6: 61.5} and "result.before.dev_spearman" not in found
    assert (name, status) == ("mine", "FINISHED")
    assert parameters["optimizer.learning_rate"] and parameters["start.sharding"] == "https://***@host/a.txt"


@pytest.mark.slow
def test_wandb_goes_on_with_one_run_offline(trainer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="the extra wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    for module in (trackers, tracking):
        monkeypatch.setattr(module, "PATIENCE", 60)
    check_trackers(["wandb"])
    folder = two_processes(trainer, "wandb")
    sent = json.loads((folder / "sent.json").read_text())
    assert sent["last"] == {"dev_spearman": 4, "loss": 6, "new": 6}
    files = sorted(folder.glob("wandb/offline-run-*/run-*.wandb"))
    assert {file.stem for file in files} == {f"run-{sent['id']}"} and len(files) == 2
    found, configured = read_wandb(files)
    assert found == ALL  # step 5 was open when the first process died
    assert configured["optimizer.learning_rate"] == trainer.recipe.optimizer.learning_rate
    assert configured["start"]["sharding"] == "https://***@host/a.txt"


def read_wandb(files: list[Path]) -> tuple[dict[str, dict[int, float]], dict[str, Any]]:
    """Numbers and configuration of offline runs, by the library's own reader."""
    from wandb.proto import wandb_internal_pb2 as records

    triples, configured = [], {}
    for file in files:
        for data in log_records(file.read_bytes()):
            record = records.Record()
            record.ParseFromString(data)
            if record.WhichOneof("record_type") == "history":
                row = {
                    item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item
                }
                triples += [(name, row["_step"], value) for name, value in row.items() if not name.startswith("_")]
            elif record.WhichOneof("record_type") == "run":
                configured |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
    return by_name(iter(triples)), configured


def log_records(data: bytes) -> Iterator[bytes]:
    """Of a log as LevelDB writes it, after a head of 7 bytes: blocks of 32 KiB, records whole (1) or in parts."""
    place, whole = 7, b""
    while place + 7 <= len(data):
        if 2**15 - place % 2**15 < 7:
            place += 2**15 - place % 2**15
            continue
        length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            yield whole
            whole = b""


class Failing(Tracker):
    """Takes one row, and then has no network."""

    def begin(self, about: Any) -> None:
        self.rows = 0

    def has(self, name: str, step: int) -> bool:
        return False

    def add(self, step: int, numbers: Any) -> None:
        self.rows += 1
        if self.rows > 1:
            raise ConnectionError("no route to token=secret\nhost")

    def end(self, result: Any, text: str) -> None:
        raise AssertionError("it has gone")


class Hanging(Failing):
    """Never comes back."""

    def add(self, step: int, numbers: Any) -> None:
        time.sleep(3600)


@pytest.mark.parametrize(
    ("tracker", "words"),
    [(Failing, "no route to"), (Hanging, "it has not taken the last numbers within")],
)
def test_a_tracker_that_fails_or_hangs_is_told_once_and_the_run_goes_on(
    trainer: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tracker: type[Tracker], words: str
) -> None:
    monkeypatch.setitem(TRACKERS, "csv", tracker)
    monkeypatch.setattr(tracking, "PATIENCE", 0.3)
    began = time.monotonic()
    with caplog.at_level(logging.WARNING):
        process(trainer, "csv", 0, FIRST[:], end=True)
    assert time.monotonic() - began < 5
    (said,) = [record.getMessage() for record in caplog.records if "Nothing more is sent to csv" in record.getMessage()]
    assert words in said and "\n" not in said and "Training continues" in said
    assert len(list(trainer.run.metrics.rows())) == 5


def test_a_run_that_is_anothers_by_now_tells_nothing(trainer: Any) -> None:
    process(trainer, "csv", 0, FIRST[:], end=True)
    file = trainer.run.path / "tracking" / "csv" / "metrics.csv"
    before = file.read_text()
    trainer.run.owned = lambda: False
    process(trainer, "csv", 4, SECOND[:], end=True)
    assert file.read_text() == before


@pytest.mark.parametrize("package", ["wandb", "tensorboard", "mlflow"])
def test_an_absent_package_is_one_sentence_also_beside_a_folder_of_its_name(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / package).mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.setattr(sys, "meta_path", [finder for finder in sys.meta_path if "editable" not in repr(finder)])
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(
        InputError, match=rf"--track {package} needs a package: pip install 'diffcse-scale\[{package}\]'"
    ):
        check_trackers(["csv", package])


def test_an_unknown_tracker_and_nobody_logged_in_are_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(
        InputError, match=r"--track 'wandbb' \(did you mean wandb\?\): give wandb, tensorboard, mlflow or csv"
    ):
        check_trackers(["csv", "wandbb"])
    pytest.importorskip("wandb", reason="the extra wandb")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(
        InputError, match=r"you are not logged in; run `wandb login`, set WANDB_API_KEY, or WANDB_MODE=off"
    ):
        check_trackers(["wandb"])


@pytest.mark.slow
def test_a_run_and_its_resumption_are_tracked(toy_world: Path, tmp_path: Path) -> None:
    run, recipe = tmp_path / "run", str(toy_world / "toy.yaml")
    arguments = ("--recipe", recipe, "--output", str(run), "--track", "csv", "--auto-resume", "log_every=2")
    assert launch(*arguments, "max_steps=4", "optimizer.schedule=constant", "optimizer.warmup=0").returncode == 0
    done = launch(*arguments, "max_steps=6", "optimizer.schedule=constant", "optimizer.warmup=0")
    assert done.returncode == 0, done.stdout
    with (run / "tracking" / "csv" / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [row["step"] for row in metrics(run)]
    assert [float(row["loss"]) for row in rows if row["loss"]] == [row["loss"] for row in metrics(run) if "loss" in row]
    with (run / "tracking" / "csv" / "start.csv").open(newline="") as file:
        assert "sentences" in dict(csv.reader(file))["corpus"]


def test_every_tracker_has_its_row_and_its_extra() -> None:
    root = Path(__file__).parents[2]
    page, setup = ((root / name).read_text(encoding="utf-8") for name in ("docs/tracking.md", "setup.py"))
    for name, tracker in TRACKERS.items():
        assert f"| `{name}` |" in page
        assert not tracker.package or (f"diffcse-scale[{name}]" in page and f'"{name}": [' in setup)
