"""What may be written where, as `ownership` decides it: files, links, devices, folders."""

from __future__ import annotations

import errno
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from threading import Thread

import pytest

from diffcse_scale.foundation import durable
from diffcse_scale.foundation.durable import put_back
from diffcse_scale.foundation.errors import InputError
from diffcse_scale.foundation.ownership import (
    MARK,
    WRITTEN_BY,
    check_file,
    check_folder,
    files_of,
    json_of,
    replaced,
    write_file,
)
from tests.support.file_events import FileEvents, kill
from tests.support.files import write_files

OURS = json.dumps({WRITTEN_BY: "program plan", "value": 1})
BEFORE_MARKS = json.dumps({"value": 1, "other": 2})


def check(path: Path, overwrite: bool = False, **more) -> None:
    check_file(path, "a plan of program plan", json_of("program plan", "value", "other"), overwrite, **more)


@pytest.mark.parametrize("content", [None, "", OURS, BEFORE_MARKS])
def test_a_file_is_written_where_there_is_nothing_or_one_of_the_same_command(tmp_path: Path, content) -> None:
    file = tmp_path / "new" / "plan.json" if content is None else tmp_path / "plan.json"
    if content is not None:
        file.write_text(content)
    check(file)
    write_file(file, "written")
    assert file.read_text() == "written"
    assert [path.name for path in file.parent.iterdir()] == ["plan.json"]


@pytest.mark.parametrize(
    ("content", "seems"),
    [
        (b'{"value": 1}', "another JSON file"),
        (b'{"written_by": "program report", "value": 1, "other": 2}', "a file of program report"),
        (b"notes", "a text file"),
        (b"\x89PNG\xff", "a binary file"),
    ],
)
def test_another_file_is_left_alone_unless_the_user_means_it(tmp_path: Path, content: bytes, seems: str) -> None:
    file = tmp_path / "plan.json"
    file.write_bytes(content)
    with pytest.raises(InputError, match=rf"plan\.json exists and is not a plan of program plan, but {seems}.*--overw"):
        check(file)
    check(file, overwrite=True)
    assert file.read_bytes() == content


def test_what_is_read_is_not_even_replaced_with_overwrite(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "pairs.tsv").write_text("4\ta\tb\n")
    for source in (tmp_path / "data" / "pairs.tsv", tmp_path / "data"):
        with pytest.raises(InputError, match="is part of the input"):
            check(tmp_path / "data" / "pairs.tsv", overwrite=True, sources=[source])
    check(tmp_path / "data" / "plan.json", sources=[tmp_path / "data"])  # a new file there does no harm
    (tmp_path / "data" / "plan.json").write_text(OURS)
    check(tmp_path / "data" / "plan.json", sources=[tmp_path / "data"])


def test_of_a_link_the_file_that_it_names_is_judged_and_written(tmp_path: Path) -> None:
    link, file = tmp_path / "link.json", tmp_path / "elsewhere" / "plan.json"
    link.symlink_to(file)
    check(link)
    write_file(link, OURS)
    assert link.is_symlink() and file.read_text() == OURS
    file.write_text("notes")
    with pytest.raises(InputError, match="a text file"):
        check(link)
    check(link, overwrite=True)
    write_file(link, OURS)
    assert link.is_symlink() and file.read_text() == OURS


def test_a_folder_a_block_device_and_a_place_below_a_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path, message in ((tmp_path, "is a folder"), (tmp_path / "file" / "plan.json", "file is not a folder")):
        with pytest.raises(InputError, match=message):
            check(path, overwrite=True)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(InputError, match="cannot be written"):
        check(tmp_path / "loop", overwrite=True)
    if os.geteuid() == 0 and _made("mknod", tmp_path / "disk", "b", "7", "200"):
        with pytest.raises(InputError, match="is a device or a socket"):
            check(tmp_path / "disk", overwrite=True)


def test_devices_and_pipes_are_written_into_and_stay_what_they_are(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read: list[str] = []
    reader = Thread(target=lambda: read.append(pipe.read_text()))
    reader.start()
    check(pipe)
    write_file(pipe, OURS)
    reader.join()
    assert read == [OURS] and pipe.is_fifo()

    null = tmp_path / "null" if _made("mknod", tmp_path / "null", "c", "1", "3") else Path("/dev/null")
    check(null)
    write_file(null, OURS)
    assert null.is_char_device()

    program = (
        "from pathlib import Path; from diffcse_scale.foundation.ownership import *;"
        "check_file(Path('/dev/stdout'), 'x', lambda f: False); write_file(Path('/dev/stdout'), 'written')"
    )
    with (tmp_path / "log").open("w") as log:  # standard output that is a file: what is there stays
        log.write("before\n")
        log.flush()
        subprocess.run([os.sys.executable, "-c", program], stdout=log, check=True)  # type: ignore[attr-defined]
    assert (tmp_path / "log").read_text() == "before\nwritten"


def _made(*command: object) -> bool:
    return subprocess.run(list(map(str, command)), capture_output=True, check=False).returncode == 0


def place(folder: Path, overwrite: bool = False, sources=(), known: Callable[[Path], bool] = lambda _: False):
    """Where `program export`, which writes names that begin with `model` and `sub/part`, may write."""
    return check_folder(
        folder, "program export", lambda name: name.startswith(("model", "sub/part")), known, overwrite, sources
    )


def export(folder: Path, *names: str, **more) -> tuple[str, ...]:
    """Write files of these names; what is said to stay."""
    where = place(folder, **more)
    with replaced(where) as fresh:
        for name in names:
            (fresh / name).parent.mkdir(parents=True, exist_ok=True)
            (fresh / name).write_text(f"new {name}")
    return where.stays


def content(folder: Path) -> dict[str, str]:
    files = [file for file in folder.rglob("*") if file.is_file() and file.name != MARK]
    return {file.relative_to(folder).as_posix(): file.read_text() for file in sorted(files)}


def test_a_folder_is_replaced_file_by_file_and_what_others_put_there_stays(tmp_path: Path) -> None:
    out = tmp_path / "out"
    export(out, "model", "model-2", "sub/part")
    (out / ".git").mkdir()
    for name in (".git/HEAD", "sub/notes", "notes"):
        (out / name).write_text("mine")
    (out / "link").symlink_to(tmp_path)

    assert export(out, "model", "sub/part-2") == (".git", "link", "notes", "sub/notes")

    assert content(out) == {
        ".git/HEAD": "mine", "model": "new model", "notes": "mine", "sub/notes": "mine", "sub/part-2": "new sub/part-2"
    }  # fmt: skip
    assert (out / "link").is_symlink() and [path.name for path in tmp_path.iterdir()] == ["out"]
    assert sorted(files_of(out)) == [MARK, "model", "sub/part-2"]


@pytest.mark.parametrize("change", ["changed", "added"])
def test_a_file_of_the_folder_that_somebody_changed_needs_overwrite(tmp_path: Path, change: str) -> None:
    export(tmp_path / "out", "model")
    name = "model" if change == "changed" else "model-2"
    (tmp_path / "out" / name).write_text("mine")
    before = content(tmp_path / "out")
    with pytest.raises(InputError, match=rf"out/{name} is not as program export wrote it; .*--overwrite"):
        export(tmp_path / "out", "model")
    assert content(tmp_path / "out") == before
    export(tmp_path / "out", "model", overwrite=True)
    assert content(tmp_path / "out") == {"model": "new model"}


def test_another_folder_needs_overwrite_which_leaves_what_the_command_does_not_write(tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "checkpoint").mkdir(parents=True)
    for name in ("model", "checkpoint/model", "notes"):
        (out / name).write_text("mine")
    with pytest.raises(InputError, match=r"was not written by program export: it holds checkpoint; .*--overwrite"):
        place(out)
    assert export(out, "model", overwrite=True) == ("checkpoint", "notes")
    assert content(out) == {"checkpoint/model": "mine", "model": "new model", "notes": "mine"}


def test_a_folder_of_another_command_is_another_folder(tmp_path: Path) -> None:
    export(tmp_path / "out", "model")
    with pytest.raises(InputError, match="was not written by program train: it is of program export"):
        check_folder(tmp_path / "out", "program train", lambda _: True, lambda _: True)


def test_a_folder_from_before_the_marks_is_known_by_its_content(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for name in ("model", "model-2", "notes"):
        (out / name).write_text("old")
    export(out, "model", known=lambda folder: (folder / "model-2").is_file())
    assert content(out) == {"model": "new model", "notes": "old"}


def test_a_folder_that_overlaps_what_is_read_is_refused_links_included(tmp_path: Path) -> None:
    source = tmp_path / "out" / "source"
    (source / "deeper").mkdir(parents=True)
    (tmp_path / "link").symlink_to(source)
    for folder in (source, source / "deeper", tmp_path / "out", tmp_path / "link"):
        with pytest.raises(InputError, match=r"is, contains or is inside .*source, which is the input"):
            place(folder, overwrite=True, sources=[source])


def test_a_file_is_no_place_for_a_folder_nor_a_folder_for_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="is not a folder"):
        place(tmp_path / "file", overwrite=True)
    (tmp_path / "out" / "model").mkdir(parents=True)
    (tmp_path / "out" / "model" / "mine").write_text("mine")
    with pytest.raises(InputError, match=r"out/model is a folder where program export writes a file"):
        place(tmp_path / "out", overwrite=True)


def test_an_error_or_a_file_that_appears_meanwhile_leaves_the_earlier_folder_whole(tmp_path: Path) -> None:
    out = tmp_path / "out"
    export(out, "model")
    for trouble in ("error", "file"):
        with pytest.raises((ZeroDivisionError, InputError)), replaced(place(out)) as fresh:
            fresh.mkdir()
            (fresh / "model-2").write_text("half")
            if trouble == "error":
                raise ZeroDivisionError
            (out / "model-2").write_text("mine")
    assert content(out) == {"model": "new model", "model-2": "mine"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_link_to_a_folder_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "far")
    export(tmp_path / "out", "model")
    export(tmp_path / "out", "model", "model-2")
    assert (tmp_path / "out").is_symlink()
    assert set(content(tmp_path / "far")) == {"model", "model-2"}


@pytest.mark.parametrize("only", ["rename", pytest.param(None, marks=pytest.mark.slow)])
@pytest.mark.parametrize("exchanges", [True, False], ids=["in one piece", "by renames"])
def test_a_kill_at_any_point_leaves_the_old_or_the_new_and_nothing_of_others_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchanges: bool, only: str | None
) -> None:
    if not exchanges:
        monkeypatch.setattr(durable, "_exchanged", lambda one, other: False)
    old, new = {"model": "new model", "model-2": "new model-2"}, {"model": "new model", "sub/part": "new sub/part"}
    mine = {"notes": "mine", ".git/HEAD": "mine"}
    killed = 0
    for at in range(1, 100):
        out = tmp_path / str(at) / "out"
        export(out, *old)
        write_files(out, mine)
        (out / "link").symlink_to(tmp_path)
        if (child := os.fork()) == 0:
            with FileEvents([tmp_path], kill(at), only=only):
                export(out, *new)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        put_back(out)  # as the next command does
        assert content(out) in ({**old, **mine}, {**new, **mine}) and (out / "link").is_symlink()
        if not status:
            break
        killed += 1
        export(out, *new)
        assert content(out) == {**new, **mine}
    assert (
        killed >= (0 if only and exchanges else 3 if only else 20)
        and content(out) == {**new, **mine}
        and len(list(out.parent.iterdir())) == 1
    )


def test_what_a_file_system_cannot_link_is_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export(tmp_path / "out", "model")
    write_files(tmp_path / "out", {"notes": "mine", "sub/notes": "mine"})

    def link(*arguments: object, **named: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    export(tmp_path / "out", "model", "sub/part")
    assert content(tmp_path / "out") == {
        "model": "new model", "notes": "mine", "sub/notes": "mine", "sub/part": "new sub/part"
    }  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
