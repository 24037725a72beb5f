"""Reads a small text file given by the user: a recipe or a configuration."""

from __future__ import annotations

from pathlib import Path

from diffcse_scale.foundation.errors import InputError
from diffcse_scale.foundation.paths import given_path, refuse_stream

LARGEST = 16 * 2**20  # bytes; files written by hand are smaller


def read_text(path: str | Path, called: str, otherwise: str) -> str:
    """Read a UTF-8 file, with or without a byte order mark.

    Args:
        path: path of the file.
        called: start of the error message, such as "Recipe mine.yaml".
        otherwise: advice if the file does not exist.

    Raises:
        InputError: the file cannot be read, is too large, or is not UTF-8.
    """
    try:
        file = given_path(path)
        refuse_stream(file, called)
        if not file.is_file():  # also refuses a folder
            raise InputError(f"{called} cannot be read: no such file; {otherwise}.")
        if file.stat().st_size > LARGEST:
            raise InputError(f"{called} is larger than {LARGEST >> 20} MiB, which is too large here.")
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{called} is not UTF-8 at byte {error.start + 1}; save it as UTF-8.") from None
    except OSError as error:
        raise InputError(f"{called} cannot be read: {error.strerror or error}; {otherwise}.") from None
