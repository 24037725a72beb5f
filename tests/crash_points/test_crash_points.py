"""Programs go on from whatever a crash leaves; a sample of the states (`make crash-points` tries all)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from diffcse_scale.foundation.durable import write_durably
from tests.crash_points.cases import CASES, write_world
from tests.crash_points.disk import EMPTIED, FORGOTTEN, KILLED, MODELS, Disk
from tests.crash_points.trial import Trial
from tests.support.command_line import diffcse_scale
from tests.support.file_events import FileEvents

SHORT = ("encode", "cache")


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("crash") / "world"
    write_world(folder)
    assert diffcse_scale("prepare", "--recipe", folder / "toy.yaml").returncode == 0
    return folder


@pytest.mark.parametrize(
    "name", [name if name in SHORT else pytest.param(name, marks=pytest.mark.slow) for name in CASES]
)
def test_what_a_crash_leaves_is_gone_on_with_to_the_same_end(name: str, world: Path, tmp_path: Path) -> None:
    trial = Trial(name, world, tmp_path)
    trial.record()
    found = {str(state): broken for state, broken in trial.all_violations(trial.sample(1, "0")) if broken}
    assert found == {}


def _in_place(file: Path) -> None:
    file.write_text("new")


def _never_flushed(file: Path) -> None:
    file.with_suffix(".tmp").write_text("new")
    file.with_suffix(".tmp").replace(file)


def _left_by(write: Callable[[Path], None], folder: Path) -> dict[str, set[str]]:
    """What the file may hold after a crash while `write` replaces it, and after its end, by model."""
    work = folder / "work"
    work.mkdir(parents=True)
    (work / "file").write_text("old")
    disk = Disk(work, folder / "store")
    disk.begin()
    with FileEvents([work], disk.before):
        write(work / "file")
    disk.end()
    left: dict[str, set[str]] = {model: set() for model in MODELS}
    for point in disk.points():
        for model in MODELS:
            disk.restore(point.states[model], folder / "left")
            left[model].add((folder / "left" / "file").read_text())
    return left


def test_a_durable_file_is_the_old_one_or_the_new_one(tmp_path: Path) -> None:
    whole = {"old", "new"}
    assert _left_by(lambda file: write_durably("new", file), tmp_path) == dict.fromkeys(MODELS, whole)


def test_what_is_written_carelessly_is_noticed(tmp_path: Path) -> None:
    assert _left_by(_in_place, tmp_path / "in place")[KILLED] == {"old", "", "new"}
    left = _left_by(_never_flushed, tmp_path / "never flushed")
    assert left == {KILLED: {"old", "new"}, EMPTIED: {"old", ""}, FORGOTTEN: {"old"}}
