"""The shim of the crash tests counts what changes a folder, and fails or kills where it is asked to."""

from __future__ import annotations

import errno
import os
import shutil
import signal
from pathlib import Path

import pytest

from tests.support.file_events import Event, FileEvents, fail, kill


def _work(folder: Path) -> None:
    """Each kind of call, by the ways in which programs make them."""
    folder.mkdir()
    (folder / "notes").mkdir()
    (folder / "notes" / "a.txt").write_text("hello")
    with (folder / "b").open("ab") as file:
        for _ in range(4):
            file.write(b"x" * 10_000)
        file.flush()
        os.fsync(file.fileno())
    os.replace(folder / "b", folder / "c")
    shutil.rmtree(folder / "notes")
    (folder.parent / "elsewhere").write_text("not watched")


def test_every_change_under_the_folder_is_an_event(tmp_path: Path) -> None:
    seen: list[Event] = []
    with FileEvents([tmp_path / "run"], seen.append):
        _work(tmp_path / "run")
    run = str(tmp_path / "run")
    assert [(event.what, event.path.removeprefix(run)) for event in seen] == [
        *[("mkdir", ""), ("mkdir", "/notes"), ("open", "/notes/a.txt"), ("write", "/notes/a.txt")],
        *[("open", "/b"), ("write", "/b"), ("write", "/b"), ("flush", "/b"), ("rename", "/b")],
        *[("remove", "/notes/a.txt"), ("remove", "/notes")],
    ]
    assert [event.number for event in seen] == list(range(1, len(seen) + 1))


@pytest.mark.parametrize("at", [1, 5, 9, 11])
def test_what_an_error_leaves_undone_is_the_event_and_all_after_it(tmp_path: Path, at: int) -> None:
    seen: list[Event] = []

    def act(event: Event) -> None:
        seen.append(event)
        fail(at, errno.EDQUOT)(event)

    with FileEvents([tmp_path / "run"], act), pytest.raises(OSError) as raised:
        _work(tmp_path / "run")
    assert len(seen) == at
    assert raised.value.errno == errno.EDQUOT
    assert not (tmp_path / "elsewhere").exists()


def test_a_look_fails_once_and_then_goes_well(tmp_path: Path) -> None:
    with FileEvents([tmp_path], fail(2, errno.ESTALE), only="stat", reads=True):
        tmp_path.stat()
        with pytest.raises(OSError, match="Stale"):
            tmp_path.stat()
        tmp_path.stat()
    assert tmp_path.exists()


def test_a_kill_is_before_the_event(tmp_path: Path) -> None:
    if (child := os.fork()) == 0:
        with FileEvents([tmp_path / "run"], kill(9)):
            _work(tmp_path / "run")
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    assert (tmp_path / "run" / "b").stat().st_size == 40_000
    assert not (tmp_path / "run" / "c").exists()
