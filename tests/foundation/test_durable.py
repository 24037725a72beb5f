"""Who may read a file is for the umask to say, whichever library writes it."""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from diffcse_scale.export.command import ExportOptions, export_model
from diffcse_scale.foundation.durable import (
    apply_umask,
    exchange,
    make_folder,
    publish,
    remove_files,
    remove_folder,
    save_weights,
    write_durably,
)
from tests.support.file_events import Event, FileEvents, fail
from tests.support.hand_made_run import write_run
from tests.support.small_disk import small_disk

ROOT = Path(__file__).parents[2]


@pytest.fixture(params=[0o022, 0o002, 0o077], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def modes(folder: Path) -> dict[str, int]:
    return {path.relative_to(folder).as_posix(): stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*")}


def test_what_is_written_has_the_modes_that_the_umask_leaves(umask: int, tmp_path: Path) -> None:
    save_weights({"x": torch.ones(2)}, tmp_path / "weights.safetensors")
    write_durably("text", tmp_path / "text.json")
    (tmp_path / "below").mkdir()
    save_file({"x": torch.ones(2)}, tmp_path / "below" / "private.safetensors")
    apply_umask(tmp_path / "below")
    assert modes(tmp_path) == {
        "below": 0o777 & ~umask,
        **dict.fromkeys(["below/private.safetensors", "text.json", "weights.safetensors"], 0o666 & ~umask),
    }


def test_a_link_in_a_folder_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "mine").touch(0o600)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "link").symlink_to(tmp_path / "mine")
    apply_umask(tmp_path / "folder")
    assert stat.S_IMODE((tmp_path / "mine").stat().st_mode) == 0o600


def test_an_export_can_be_read_by_those_whom_the_umask_lets(umask: int, tmp_path: Path) -> None:
    """Also that of a run whose own model is private, as earlier versions left it."""
    run = write_run(tmp_path / "mine", pooling="first_last_mean")
    found = modes(run / "model")
    (run / "model" / "model.safetensors").chmod(0o600)
    export_model(run, tmp_path / "out", ExportOptions(projection=True, normalize=True))
    for name, mode in {**found, **modes(tmp_path / "out")}.items():
        assert mode == (0o666 if "." in name.rpartition("/")[2] else 0o777) & ~umask, name


def test_only_one_module_writes_safetensors() -> None:
    """All others write through it, or tell it of what libraries have written."""
    for file in (ROOT / "diffcse_scale").rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        if file.name != "durable.py":
            assert not re.search(r"\bsave_file\b|mkstemp|NamedTemporaryFile|mkdtemp", text), file


def test_a_folder_gets_its_name_when_the_disk_has_all_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fresh, folder = tmp_path / "fresh", tmp_path / "folder"
    (fresh / "below").mkdir(parents=True)
    (fresh / "one").write_text("1")
    (fresh / "below" / "two").write_text("2")
    (fresh / "link").symlink_to("nowhere")
    events: list[str] = []
    sync, replace = os.fsync, os.replace

    def synced(descriptor: int) -> None:
        events.append(os.path.relpath(os.readlink(f"/proc/self/fd/{descriptor}"), tmp_path))
        sync(descriptor)

    def replaced(one: Path, other: Path) -> None:
        events.append("renamed")
        replace(one, other)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    publish(fresh, folder)
    assert set(events[:-2]) == {"fresh/one", "fresh/below/two", "fresh/below", "fresh"} and events[-3] == "fresh"
    assert events[-2:] == ["renamed", "."]
    assert (folder / "below" / "two").read_text() == "2" and (folder / "link").is_symlink()


def test_a_new_folders_name_is_on_the_disk_and_those_above_it(tmp_path: Path) -> None:
    events: list[Event] = []
    with FileEvents([tmp_path], events.append):
        make_folder(tmp_path / "runs" / "mine")
        make_folder(tmp_path / "runs" / "mine")  # it is there
    flushed = [event.path for event in events if event.what == "flush"]
    assert flushed == [str(tmp_path), str(tmp_path / "runs")]


def test_what_cannot_be_written_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "8k") as mounted:
        if not mounted:
            pytest.skip("this user may not mount a small file system")
        write_durably("old", tmp_path / "disk" / "file")
        with pytest.raises(OSError, match="No space left on device"):
            write_durably("x" * 100_000, tmp_path / "disk" / "file")
        assert [(file.name, file.read_text()) for file in (tmp_path / "disk").iterdir()] == [("file", "old")]


def test_a_folder_that_cannot_be_removed_is_told_and_ends_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("kept", "gone"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    with FileEvents([tmp_path / "kept"], fail(1, errno.EACCES), only="remove"):
        remove_folder(tmp_path / "kept")
    remove_folder(tmp_path / "gone")
    remove_folder(tmp_path / "gone")
    assert (
        f"{tmp_path / 'kept'} is no longer needed but cannot be removed (permission denied); it stays." in caplog.text
    )
    assert [path.name for path in tmp_path.iterdir()] == ["kept"] and "gone" not in caplog.text


def test_a_folder_that_several_processes_empty_goes_with_its_last_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "old"
    folder.mkdir()
    for name in ("one", "two"):
        (folder / name).touch()
    remove_files(folder, ["one"])
    assert [file.name for file in folder.iterdir()] == ["two"]
    with FileEvents([folder], fail(1, errno.EACCES), only="remove"):
        remove_files(folder, ["two"])
    assert caplog.messages == [f"{folder} is no longer needed but cannot be removed (permission denied); it stays."]
    remove_files(folder, ["two", "removed by another process"])
    assert not folder.exists()
    remove_files(folder, ["two"])
    assert len(caplog.messages) == 1


def test_two_folders_change_their_names_or_nothing_has_happened(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    for folder in (one, other):
        folder.mkdir()
        (folder / "name").write_text(folder.name)
    exchange(one, other)
    assert ((one / "name").read_text(), (other / "name").read_text()) == ("other", "one")
    with FileEvents([one], fail(1, errno.EIO), only="flush"), pytest.raises(OSError):
        exchange(one, other)
    assert (other / "name").read_text() == "one"
