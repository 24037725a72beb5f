"""What a model folder holds, as files of their own: an export carries nothing from outside the model.

A symbolic link is followed only where it leads to a file of the same model: into the folder itself or, where the folder
is a snapshot in the Hub's cache (models--owner--name/snapshots/COMMIT/FILE -> ../../blobs/HASH), into the blobs of that
repository. A link is followed to its very end before this is asked: a blob that is itself a link leads out, too.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path

from diffcse_scale.foundation.errors import InputError


def own_file(file: Path, folder: Path) -> Path:
    """Where the content of a file of a model folder lies.

    Raises:
        InputError: it is a link that leads out of the model, or no file at all.
    """
    root, content = folder.resolve(), file.resolve()
    blobs = root.parent.parent / "blobs"
    own = content.is_relative_to(root) or (root.parent.name == "snapshots" and content.parent == blobs)
    if own and content.is_file():
        return content
    what = f"is a link to {content}, which is not part of the model" if file.is_symlink() else "is no file"
    raise InputError(f"{file} {what}; replace it with a file, or remove it.")


def own_files(folder: Path, left_out: Sequence[str] = ()) -> dict[Path, Path]:
    """The files of a model folder: their places relative to it, and where their content lies.

    Args:
        left_out: patterns of the names of files and folders.

    Raises:
        InputError: as `own_file`.
    """
    return {file.relative_to(folder): own_file(file, folder) for file in _entries(folder, left_out)}


def copy_files(files: dict[Path, Path], target: Path) -> None:
    """Write the content of `own_files` under a folder that is not there yet."""
    for place, content in files.items():
        (target / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(content, target / place)


def _entries(folder: Path, left_out: Sequence[str]) -> Iterator[Path]:
    """All but real folders, which are looked into."""
    for entry in os.scandir(folder):
        if any(fnmatch(entry.name, pattern) for pattern in left_out):
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from _entries(folder / entry.name, left_out)
        else:
            yield folder / entry.name
