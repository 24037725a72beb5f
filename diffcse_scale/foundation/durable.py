"""Writes files so that a crash leaves the old or the new one complete, with the permissions that the umask allows."""

from __future__ import annotations

import ctypes
import errno
import glob
import logging
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, TextIO
from uuid import uuid4

from diffcse_scale.foundation.errors import disk_errors_at, system_reason

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)

STAYS = "%s is no longer needed but cannot be removed (%s); it stays."
TEMPORARY, ASIDE = ".tmp", ".aside"  # end the names of what is not yet in its place, and of what is no longer


def write_durably(text: str, path: Path) -> None:
    """Replace a small file; after a crash it is the old one or the new one."""
    with replacing(path) as file:
        file.write(text)


@contextmanager
def replacing(path: Path, *, durably: bool = True, fresh: Path | None = None) -> Iterator[TextIO]:
    """What to write the new content of a file into, which takes the place of the old one as a whole.

    Args:
        durably: wait until the disk has it.
        fresh: where it is written, beside the file. By default that is one name, so that only one process may replace
            the file at a time.
    """
    fresh = fresh or path.with_name(path.name + TEMPORARY)
    try:
        with disk_errors_at(path):
            with fresh.open("w", encoding="utf-8") as file:
                yield file
                if durably:
                    file.flush()
                    os.fsync(file.fileno())
            os.replace(fresh, path)
    except BaseException:
        with suppress(OSError):
            fresh.unlink()  # it may be what has filled the disk
        raise
    if durably:
        sync_folder(path.parent)


def unfinished(name: str) -> str | None:
    """The file whose new content a kill has left under `name`, of one of several processes or of the only one."""
    found = re.fullmatch(rf"(.+?)(\.\d+)?{re.escape(TEMPORARY)}", name)
    return found and found[1]


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it, whose names the disk has."""
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for place in reversed(missing):
        sync_folder(place.parent)


def remove_folder(folder: Path) -> None:
    """Remove a folder that is of no more use, if it is there; if it cannot be, that is told and does no harm."""
    try:
        shutil.rmtree(folder)
    except FileNotFoundError:
        pass
    except OSError as error:
        log.warning(STAYS, folder, system_reason(error))


def remove_files(folder: Path, names: Iterable[str]) -> None:
    """Remove files of a folder that is no longer needed, and the folder once it is empty: processes share the work."""
    try:
        for name in names:
            (folder / name).unlink(missing_ok=True)
        folder.rmdir()
    except FileNotFoundError:  # another process has removed the folder
        pass
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):  # then another process still has files to remove
            log.warning(STAYS, folder, system_reason(error))


def sync_folder(folder: Path) -> None:
    """Flush the names in `folder` to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with disk_errors_at(folder):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def publish(fresh: Path, place: Path) -> None:
    """Give a file or folder its final name, once the disk has all of it: what has that name is never half there."""
    _sync_tree(fresh)
    os.replace(fresh, place)
    sync_folder(place.parent)


def exchange(fresh: Path, folder: Path) -> None:
    """Have two folders change their names, once the disk has all of `fresh`; an error leaves them as they were.

    At every moment one of the two is called `folder`. Where the file system cannot do that in one piece, a kill between
    two renames leaves it to `put_back`.
    """
    _sync_tree(fresh)
    if not _exchanged(fresh, folder):
        aside = _aside(fresh)
        os.replace(folder, aside)
        try:
            os.replace(fresh, folder)
        except OSError:
            os.replace(aside, folder)
            raise
        os.replace(aside, fresh)


def put_back(folder: Path) -> None:
    """Undo an `exchange` that a kill has left without either of the two under the name of `folder`."""
    name = glob.escape(folder.name)
    if not os.path.lexists(folder) and (found := sorted(folder.parent.glob(f".{name}.*{ASIDE}"))):
        os.replace(found[-1], folder)


def _aside(fresh: Path) -> Path:
    return fresh.with_name(fresh.name + ASIDE)


def _exchanged(one: Path, other: Path) -> bool:
    """Whether the two have changed names, as Linux can do it: in one piece, on most file systems."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    here, flag = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return rename is not None and rename(here, os.fsencode(one), here, os.fsencode(other), flag) == 0


def _sync_tree(place: Path) -> None:
    """Flush a file, or all of a folder, to the disk."""
    if place.is_file():
        sync_file(place)
    for folder, _, names in os.walk(place, topdown=False):
        for name in names:
            sync_file(Path(folder) / name)
        sync_folder(Path(folder))


def sync_file(file: Path) -> None:
    """Flush a file to the disk."""
    if file.is_symlink():
        return
    with file.open("rb") as content, disk_errors_at(file):
        os.fsync(content.fileno())


def save_weights(weights: Mapping[str, Tensor], path: Path) -> None:
    """Write a safetensors file that transformers can load too."""
    from safetensors.torch import save_file

    with disk_errors_at(path):
        save_file(dict(weights), path, metadata={"format": "pt"})
        apply_umask(path)


def apply_umask(path: Path) -> None:
    """Give a new file, or all files of a new folder, the permissions with which any program creates a file here.

    safetensors, and with it transformers and peft, leave files that only their owner can read: they write through
    private temporary files.
    """
    folder = path if path.is_dir() else path.parent
    probe = folder / f".permissions.{uuid4().hex}"  # processes of several hosts may write into the folder
    probe.touch()
    mode = probe.stat().st_mode
    probe.unlink()
    for file in [path] if path.is_file() else path.rglob("*"):
        if file.is_file() and not file.is_symlink():
            file.chmod(mode)
