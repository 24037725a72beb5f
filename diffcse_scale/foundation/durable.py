"""Files that a crash leaves whole, and that those may read whom the umask lets."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from torch import Tensor


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
    fresh = fresh or path.with_name(path.name + ".tmp")
    with fresh.open("w", encoding="utf-8") as file:
        yield file
        if durably:
            file.flush()
            os.fsync(file.fileno())
    os.replace(fresh, path)
    if durably:
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Flush the names in `folder` to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def publish(fresh: Path, final: Path) -> None:
    """Give a folder, or a file, its final name once the disk has all of it: what has that name is never half there."""
    if fresh.is_file():
        _sync(fresh)
    for place, _, names in os.walk(fresh, topdown=False):
        for name in names:
            if not (file := Path(place) / name).is_symlink():
                _sync(file)
        sync_folder(Path(place))
    os.replace(fresh, final)
    sync_folder(final.parent)


def _sync(file: Path) -> None:
    with file.open("rb") as content:
        os.fsync(content.fileno())


def save_weights(weights: Mapping[str, Tensor], path: Path) -> None:
    """Write a safetensors file that transformers can load too."""
    from safetensors.torch import save_file

    save_file(dict(weights), path, metadata={"format": "pt"})
    apply_umask(path)


def apply_umask(path: Path) -> None:
    """Give a new file, or all files of a new folder, the permissions with which any program creates a file here.

    safetensors, and with it transformers and peft, leave files that only their owner can read: they write through
    private temporary files.
    """
    folder = path if path.is_dir() else path.parent
    probe = folder / f".permissions.{os.getpid()}"
    probe.touch()
    mode = probe.stat().st_mode
    probe.unlink()
    for file in [path] if path.is_file() else path.rglob("*"):
        if file.is_file() and not file.is_symlink():
            file.chmod(mode)
