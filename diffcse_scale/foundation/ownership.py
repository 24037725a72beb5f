"""What a command may overwrite: only what the same command wrote for the same purpose.

A JSON file names its writer under `written_by`. A folder has the file `MARK`, which also lists the folder's files.
Output of versions before these marks is recognized by its content. Anything else needs the user's `--overwrite`. It
replaces a file; in a folder it replaces only files that the command writes, and others stay. Inputs of a command and
folders that belong to a run are never overwritten. A file never replaces a folder, nor a folder a file. Devices and
pipes are written into.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffcse_scale.foundation import run_files
from diffcse_scale.foundation.durable import (
    apply_umask,
    exchange,
    make_folder,
    publish,
    put_back,
    replacing,
    sync_folder,
)
from diffcse_scale.foundation.errors import InputError, disk_errors_at, remedy, system_reason
from diffcse_scale.foundation.paths import given_path
from diffcse_scale.foundation.strict_json import to_json

WRITTEN_BY = "written_by"
MARK = ".diffcse-scale.json"
RUN_FILES = (run_files.RECIPE, run_files.RECORD)  # every run has both
RUN_FOLDERS = (  # written by training and `evaluate`
    run_files.MODEL,
    run_files.BEST,
    run_files.CHECKPOINTS,
    run_files.EVALUATIONS,
    run_files.HANG,
)
STREAMS = ("/dev/stdout", "/dev/stderr", "/dev/fd/", "/proc/")  # their targets are never replaced
LARGEST = 2**24  # bytes: for a larger file only the size is recorded, and larger JSON files are never ours

Known = Callable[[Path], bool]


def check_file(
    path: Path, what: str, known: Known, overwrite: bool | None = False, sources: Collection[str | Path] = ()
) -> None:
    """Check, before the work starts, that `write_file` may write at `path`.

    A link is followed: its target is checked and replaced.

    Args:
        what: what the command writes there, with its article.
        known: whether an existing file is such output.
        overwrite: replace an existing file even if it is not; None if the command has no such option.
        sources: files and folders that the command reads.

    Raises:
        InputError: another file exists and `overwrite` is False; `path` is a source, folder, block device or socket;
            or no file can be made there.
    """
    place = _real(path)
    try:
        if _is_stream(path):
            if not os.access(path, os.W_OK):
                raise PermissionError(0, "no permission")
            return
        if place.is_dir():
            raise InputError(f"{path} is a folder; give the name of a file.")
        if not place.exists():
            return _check_parent(place, path)
        if not place.is_file():
            raise InputError(f"{path} is a device or a socket; give the name of a file.")
        if not place.stat().st_size or known(place):
            return
    except OSError as error:
        raise InputError(f"{path} cannot be written ({system_reason(error)}); give another name.") from None
    if any(place == _real(source) or _real(source) in place.parents for source in sources):
        raise InputError(f"{path} is part of the input, and is not {what}; give another name.")
    if not overwrite:
        advice = "give another name" + ("" if overwrite is None else ", or --overwrite to replace it")
        raise InputError(f"{path} exists and is not {what}, but {_seems(place)}; {advice}.")


def write_file(path: Path, text: str) -> None:
    """Write a file atomically, and make its folder if needed. Call `check_file` first.

    The temporary name contains the process id, so two commands may write at the same path.

    Raises:
        InputError: the disk or the system refuses it.
    """
    try:
        if _is_stream(path):
            with given_path(path).open("a", encoding="utf-8") as stream:
                stream.write(text)
            return
        place = _real(path)
        make_folder(place.parent)
        with replacing(place, fresh=place.with_name(f".{place.name}.{os.getpid()}.partial")) as file:
            file.write(text)
    except OSError as error:
        raise InputError(f"{path} cannot be written ({system_reason(error)}); {remedy(error)}.") from error


def json_of(command: str, *keys: str) -> Known:
    """Recognizes JSON objects that `command` wrote: by their mark, or without a mark by their keys."""

    def known(file: Path) -> bool:
        content = _json(file)
        if content is None:
            return False
        return content[WRITTEN_BY] == command if WRITTEN_BY in content else set(keys) <= content.keys()

    return known


@dataclass(frozen=True)
class Place:
    """A folder that a command may write.

    Attributes:
        folder: its path with links resolved.
        own: relative names of the files in it that are replaced or removed.
        stays: topmost names of everything else in it.
    """

    folder: Path
    command: str
    own: frozenset[str] = frozenset()
    stays: tuple[str, ...] = ()


def check_folder(
    path: Path,
    command: str,
    writes: Callable[[str], bool],
    known: Known,
    overwrite: bool = False,
    sources: Collection[str | Path] = (),
) -> Place:
    """Check, before the work starts, that `replaced` may write a folder.

    Args:
        command: the command's name in the mark.
        writes: whether `command` may write a file with this relative name.
        known: whether a folder without a mark was written by an earlier version of the command.
        sources: files and folders that the command reads.

    Raises:
        InputError: the folder holds something else, or changed files of the command, and `overwrite` is False; it is a
            file or overlaps a source; or it cannot be made.
    """
    folder = _real(path)
    for source in map(_real, sources):
        if source == folder or source in folder.parents or folder in source.parents:
            raise InputError(f"{path} is, contains or is inside {source}, which is the input; give another folder.")
    put_back(folder)
    if not os.path.lexists(folder):
        _check_parent(folder, path)
        return Place(folder, command)
    if not folder.is_dir():
        raise InputError(f"{path} is not a folder; give another name.")
    if not any(folder.iterdir()):
        return Place(folder, command)
    mark = _json(folder / MARK) or {}
    ours = mark.get(WRITTEN_BY) == command
    listed: dict[str, str] = mark.get("files", {}) if ours else {}
    if not ours and (mark or not known(folder)) and not overwrite:
        raise InputError(
            f"{path} exists and was not written by {command}: {_seems_folder(folder, mark)}; give another folder, or "
            f"--overwrite to replace those of its files that {command} writes."
        )
    there, folders = _content(folder)
    if blocked := sorted(name for name in folders if writes(name) or name in listed):
        raise InputError(f"{path}/{blocked[0]} is a folder where {command} writes a file; give another folder.")
    touched = sorted(name for name in there if name in listed and _digest(folder / name) != listed[name])
    touched += sorted(name for name in there if listed and writes(name) and name not in listed)
    if touched and not overwrite:
        raise InputError(
            f"{path}/{touched[0]} is not as {command} wrote it; give another folder, or --overwrite to replace it."
        )
    own = frozenset(name for name in there if name in listed or writes(name))
    return Place(folder, command, own, tuple(sorted(_foreign(folder, own))))


@contextmanager
def replaced(place: Place) -> Iterator[Path]:
    """Yield a new folder to create and fill. It replaces the earlier one if the block ends without an error.

    Files in the earlier folder that are not the command's own are moved over.

    Raises:
        InputError: in the meantime another file appeared under the name of a written one.
    """
    folder = place.folder
    fresh = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        with disk_errors_at(folder):
            make_folder(folder.parent)
            yield fresh
            apply_umask(fresh)
            files, _ = _content(fresh)
            mark = {WRITTEN_BY: place.command, "files": {name: _digest(fresh / name) for name in sorted(files)}}
            (fresh / MARK).write_text(to_json(mark, indent=1) + "\n", encoding="utf-8")
            stays = _taken_along(place, fresh)
            (exchange if folder.exists() else publish)(fresh, folder)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    if fresh.exists():
        _clear_away(place, fresh, stays)


def files_of(folder: Path) -> list[str]:
    """Relative names of a folder's mark and of the files that it lists."""
    return [MARK, *(_json(folder / MARK) or {})["files"]]


def refuse_run_folder(path: Path) -> None:
    """Raise InputError if `path` is a run, or inside a part of a run that training or `evaluate` writes."""
    folder = _real(path)
    for run in (folder, *folder.parents):
        if all((run / name).is_file() for name in RUN_FILES):
            within = folder.relative_to(run).parts
            if not within or within[0] in RUN_FOLDERS:
                raise InputError(f"{path} belongs to the run in {run}; give another folder.")


def _taken_along(place: Place, fresh: Path) -> list[str]:
    """Link the earlier folder's foreign files into `fresh` where links are possible; returns their names."""
    folder = place.folder
    stays = list(_foreign(folder, place.own, fresh)) if folder.exists() else []
    for name in stays:
        if os.path.lexists(fresh / name) or any((fresh / parent).is_file() for parent in Path(name).parents):
            raise InputError(
                f"{folder}/{name} is in the way of a file that {place.command} writes; nothing was written."
            )
    for name in stays:
        (fresh / name).parent.mkdir(parents=True, exist_ok=True)
        try:
            _link(folder / name, fresh / name)
        except OSError:  # some file systems and some files cannot be linked
            _unlink(fresh / name, folder / name)
    return stays


def _clear_away(place: Place, old: Path, stays: Collection[str]) -> None:
    """Remove the earlier folder except files that appeared in the meantime; move what could not be linked."""
    sync_folder(place.folder.parent)
    for name in stays:
        _unlink(old / name, place.folder / name)
        if os.path.lexists(old / name) and not os.path.lexists(place.folder / name):
            (old / name).rename(place.folder / name)
    for name in (*place.own, MARK):
        (old / name).unlink(missing_ok=True)
    for emptied, _, _ in os.walk(old, topdown=False):
        with suppress(OSError):
            Path(emptied).rmdir()
    if old.exists():
        old.rename(old.with_suffix(".old"))


def _link(source: Path, target: Path) -> None:
    """Give a file, or all files of a folder, a second name."""
    if source.is_symlink() or not source.is_dir():
        os.link(source, target, follow_symlinks=False)
        return
    target.mkdir()
    for entry in source.iterdir():
        _link(entry, target / entry.name)
    shutil.copystat(source, target)


def _unlink(name: Path, other: Path) -> None:
    """Undo `_link`: remove each name whose file also has the other name, and the emptied folders."""
    if name.is_symlink() or not name.is_dir():
        if os.path.lexists(name) and os.path.lexists(other) and os.path.samestat(name.lstat(), other.lstat()):
            name.unlink()
        return
    for entry in list(name.iterdir()):
        _unlink(entry, other / entry.name)
    with suppress(OSError):
        name.rmdir()


def _foreign(folder: Path, own: Collection[str], fresh: Path | None = None, within: str = "") -> Iterator[str]:
    """The topmost entries that contain no file of `own`. Folders that `fresh` has too are searched."""
    for entry in os.scandir(folder / within):
        name = within + entry.name
        if name in own or name == MARK:
            continue
        shared = any(one.startswith(f"{name}/") for one in own) or (fresh is not None and (fresh / name).is_dir())
        if shared and entry.is_dir(follow_symlinks=False):
            yield from _foreign(folder, own, fresh, f"{name}/")
        else:
            yield name


def _content(folder: Path) -> tuple[set[str], set[str]]:
    """Relative names of all non-folders and of all folders inside a folder, without the mark."""
    files: set[str] = set()
    folders: set[str] = set()
    for place, names, others in os.walk(folder):
        within = Path(place).relative_to(folder)
        links = {name for name in names if (Path(place) / name).is_symlink()}
        files |= {(within / name).as_posix() for name in (*others, *links)}
        folders |= {(within / name).as_posix() for name in names if name not in links}
    return files - {MARK}, folders


def _digest(file: Path) -> str:
    """A digest that changes with a file's content; for a large file only with its size."""
    if not file.is_file():
        return "no file"
    size = file.stat().st_size
    return f"{size} bytes" if size > LARGEST else hashlib.sha256(file.read_bytes()).hexdigest()


def _real(path: str | Path) -> Path:
    return Path(os.path.realpath(given_path(path)))


def _is_stream(path: Path) -> bool:
    """Whether `path` is a pipe or character device, which is written into and not replaced."""
    place = os.path.abspath(given_path(path))
    if place.startswith(STREAMS):
        return os.path.exists(place) and not os.path.isdir(place)
    with suppress(FileNotFoundError, NotADirectoryError):
        mode = os.stat(place).st_mode
        return stat.S_ISCHR(mode) or stat.S_ISFIFO(mode)
    return False


def _check_parent(place: Path, path: Path) -> None:
    """Raise InputError if `place` cannot be created."""
    parent = next(parent for parent in place.parents if os.path.lexists(parent))
    if not parent.is_dir():
        raise InputError(f"{path} cannot be written: {parent} is not a folder; give another name.")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise InputError(f"{path} cannot be written: no permission in {parent}; give another name.")


def _json(file: Path) -> dict[str, Any] | None:
    """The JSON object in a file; None if there is none."""
    if not file.is_file() or file.stat().st_size > LARGEST:
        return None
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def _seems(file: Path) -> str:
    content = _json(file)
    if content is not None:
        return f"a file of {content[WRITTEN_BY]}" if WRITTEN_BY in content else "another JSON file"
    try:
        with file.open("rb") as opened:
            opened.read(1024).decode()
    except UnicodeDecodeError:
        return "a binary file"
    return "a text file"


def _seems_folder(folder: Path, mark: dict[str, Any]) -> str:
    if mark:
        return f"it is of {mark.get(WRITTEN_BY)}"
    if (folder / ".git").exists():
        return "it is a git repository"
    if (folder / "modules.json").is_file() or (folder / "config.json").is_file():
        return "it is a model of another program"
    return f"it holds {min(entry.name for entry in folder.iterdir())}"
