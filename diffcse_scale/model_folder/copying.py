"""Copies the files of a model folder. An export contains nothing from outside the model.

A symbolic link is followed only if it leads to a file of the same model: inside the folder itself or, if the folder is
a snapshot in the Hub's cache (models--owner--name/snapshots/COMMIT/FILE -> ../../blobs/HASH), inside the blobs of that
repository. Links are fully resolved before this check, so a blob that is itself a link may lead outside too.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path

from diffcse_scale.foundation.errors import InputError


def own_file(file: Path, folder: Path) -> Path:
    """The resolved path of a file of a model folder.

    Raises:
        InputError: it is a link that leads out of the model, or not a file.
    """
    root, content = folder.resolve(), file.resolve()
    blobs = root.parent.parent / "blobs"
    own = content.is_relative_to(root) or (root.parent.name == "snapshots" and content.parent == blobs)
    if own and content.is_file():
        return content
    what = f"is a link to {content}, which is not part of the model" if file.is_symlink() else "is no file"
    raise InputError(f"{file} {what}; replace it with a file, or remove it.")


def own_files(folder: Path, left_out: Sequence[str] = ()) -> dict[Path, Path]:
    """The files of a model folder: relative paths to resolved paths.

    Args:
        left_out: patterns for names of files and folders to skip.

    Raises:
        InputError: as for `own_file`.
    """
    return {file.relative_to(folder): own_file(file, folder) for file in _entries(folder, left_out)}


def copy_files(files: dict[Path, Path], target: Path) -> None:
    """Copy `own_files` into a new folder."""
    for place, content in files.items():
        (target / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(content, target / place)


def _entries(folder: Path, left_out: Sequence[str]) -> Iterator[Path]:
    """All entries except real folders, which are searched."""
    for entry in os.scandir(folder):
        if any(fnmatch(entry.name, pattern) for pattern in left_out):
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from _entries(folder / entry.name, left_out)
        else:
            yield folder / entry.name
