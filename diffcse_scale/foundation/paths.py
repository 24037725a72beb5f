"""Paths as users write them."""

from __future__ import annotations

import os
from pathlib import Path

from diffcse_scale.foundation.errors import InputError, brief, quoted

LONGEST_NAME, LONGEST_PATH = 255, 4095  # bytes: limits of Linux and its file systems


def seen_from_here(path: str | Path) -> str:
    """A path for display: relative to the working directory if that is shorter."""
    return min(str(path), os.path.relpath(path), key=len)


def given_path(path: str | Path) -> Path:
    """Expand `~` or `~user` in a user's path. A shell does this only at the beginning of a word.

    Raises:
        InputError: the user does not exist, or no file can have this path.
    """
    text = str(path)
    shown = brief(text)
    try:
        place = Path(path).expanduser()
    except RuntimeError:
        raise InputError(
            f"{shown}: there is no such user, or the user has no home folder; give the full path."
        ) from None
    if "\0" in text:
        raise InputError(f"{shown} contains a NUL, which no path may contain; give another name.")
    # half of a surrogate pair stands for a byte that is not UTF-8; libraries in Rust cannot open such files
    if any("\ud800" <= sign <= "\udfff" for sign in text):
        raise InputError(f"{quoted(text)} is not UTF-8; rename it, or give another name.")
    for name, most in (*((part, LONGEST_NAME) for part in place.parts), (str(place), LONGEST_PATH)):
        if (size := len(name.encode())) > most:
            raise InputError(f"{shown} is too long: {size:,} bytes where {most:,} are allowed; give a shorter name.")
    return place


def refuse_stream(place: Path, called: str) -> None:
    """Refuse a pipe or device: it can be read only once, and an input is read again by other ranks and on resume.

    Args:
        place: a path that `given_path` returned; it may be absent. "-" without a file of this name is standard input.
        called: start of the error message, such as "Corpus /dev/stdin".

    Raises:
        InputError: something is there that is neither a file nor a folder.
    """
    is_stream = not (place.is_file() or place.is_dir()) if place.exists() else str(place) == "-"
    if is_stream:
        raise InputError(f"{called} is a pipe or device, which can be read only once; write its text to a file first.")
