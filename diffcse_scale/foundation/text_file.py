"""A small text file that a user has named: a recipe, a configuration."""

from __future__ import annotations

from pathlib import Path

from diffcse_scale.foundation.errors import InputError
from diffcse_scale.foundation.paths import given_path

LARGEST = 16 * 2**20  # bytes; nobody writes more by hand


def read_text(path: str | Path, called: str, otherwise: str) -> str:
    """What is in a file of UTF-8, with or without a byte order mark.

    Args:
        path: of the file.
        called: begins the message, as in "Recipe mine.yaml".
        otherwise: what to do where there is no such file.

    Raises:
        InputError: it cannot be read, is too large, or is not UTF-8.
    """
    try:
        file = given_path(path)
        if not file.is_file():  # a folder, or a pipe that nobody writes to
            raise InputError(f"{called} cannot be read: no such file; {otherwise}.")
        if file.stat().st_size > LARGEST:
            raise InputError(f"{called} is larger than {LARGEST >> 20} MiB, which is too large here.")
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{called} is not UTF-8 at byte {error.start + 1}; save it as UTF-8.") from None
    except OSError as error:
        raise InputError(f"{called} cannot be read: {error.strerror or error}; {otherwise}.") from None
