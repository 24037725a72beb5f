"""Writes files so that a crash leaves either the old or the new file complete, with permissions from the umask."""

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
TEMPORARY, ASIDE = ".tmp", ".aside"  # suffixes of new files before they get their name, and of old ones moved away


def write_durably(text: str, path: Path) -> None:
    """Replace a small file. After a crash it has either the old or the new content."""
    with replacing(path) as file:
        file.write(text)


@contextmanager
def replacing(path: Path, *, durably: bool = True, fresh: Path | None = None) -> Iterator[TextIO]:
    """Yield a file for new content. It replaces the old file at once when the block ends without an error.

    Args:
        durably: wait until the content is on disk.
        fresh: temporary path beside the file. The default path is fixed, so only one process may replace the file at
            a time.
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
            fresh.unlink()  # it may have filled the disk
        raise
    if durably:
        sync_folder(path.parent)


def unfinished(name: str) -> str | None:
    """The file to which the temporary file `name` belongs, which a killed process left; None for any other name."""
    found = re.fullmatch(rf"(.+?)(\.\d+)?{re.escape(TEMPORARY)}", name)
    return found and found[1]


def make_folder(folder: Path) -> None:
    """Make a folder and its parents, and flush their names to the disk."""
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for place in reversed(missing):
        sync_folder(place.parent)


def remove_folder(folder: Path) -> None:
    """Remove a folder that is no longer needed, if it exists. A failure is only logged, because it does no harm."""
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
    """Give a file or folder its final name after all of it is on disk, so that it is never incomplete."""
    _sync_tree(fresh)
    os.replace(fresh, place)
    sync_folder(place.parent)


def exchange(fresh: Path, folder: Path) -> None:
    """Swap the names of two folders after all of `fresh` is on disk. An error leaves them unchanged.

    At every moment one of the two has the name `folder`. If the file system cannot swap atomically, two renames are
    needed, and `put_back` repairs the result of a kill between them.
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
    """Undo an `exchange` that was killed between two renames, when neither folder had the name `folder`."""
    name = glob.escape(folder.name)
    if not os.path.lexists(folder) and (found := sorted(folder.parent.glob(f".{name}.*{ASIDE}"))):
        os.replace(found[-1], folder)


def _aside(fresh: Path) -> Path:
    return fresh.with_name(fresh.name + ASIDE)


def _exchanged(one: Path, other: Path) -> bool:
    """Try to swap two names atomically, as Linux can on most file systems; whether it worked."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    here, flag = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return rename is not None and rename(here, os.fsencode(one), here, os.fsencode(other), flag) == 0


def _sync_tree(place: Path) -> None:
    """Flush a file, or a whole folder, to the disk."""
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
    """Give a new file, or all files of a new folder, the default permissions of new files in this folder.

    safetensors writes through private temporary files, so its files (also those of transformers and peft) can only be
    read by their owner.
    """
    folder = path if path.is_dir() else path.parent
    probe = folder / f".permissions.{uuid4().hex}"  # unique, because processes on several hosts may write here
    probe.touch()
    mode = probe.stat().st_mode
    probe.unlink()
    for file in [path] if path.is_file() else path.rglob("*"):
        if file.is_file() and not file.is_symlink():
            file.chmod(mode)
