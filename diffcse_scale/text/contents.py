"""Detects what a file contains by its first bytes, whatever its name says."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from diffcse_scale.foundation.errors import InputError, one_line
from diffcse_scale.text.compressed import open_bytes
from diffcse_scale.text.formats import COMPRESSIONS, FORMATS, Format
from diffcse_scale.text.json_objects import object_of
from diffcse_scale.text.remote import origin

FIRST_BYTES = 4096
BEGINNINGS = {
    **{one.title: one.first_bytes for one in FORMATS.values() if one.first_bytes},
    **{one.name: one.first_bytes for one in COMPRESSIONS.values()},
    # formats that are not read; known only so that messages can name them
    "zip": re.compile(rb"PK(\x03\x04|\x05\x06|\x07\x08)"),
    "lz4": re.compile(rb"\x04\x22\x4d\x18"),
    "rar": re.compile(rb"Rar!\x1a\x07"),
    "NumPy": re.compile(rb"\x93NUMPY"),
    "7z": re.compile(rb"7z\xbc\xaf\x27\x1c"),
    "SQLite": re.compile(rb"SQLite format 3\x00"),
    "Arrow": re.compile(rb"ARROW1\x00"),
    "PDF": re.compile(rb"%PDF-\d"),
    "UTF-32": re.compile(rb"(\xff\xfe\x00\x00|\x00\x00\xfe\xff)"),
    "UTF-16": re.compile(rb"(\xff\xfe|\xfe\xff)"),
    # text that stands in the place of a file
    "an HTML page": re.compile(rb"(?i)(\xef\xbb\xbf)?\s*(<!doctype html|<html[\s>])"),
    "a Git LFS pointer": re.compile(rb"version https://git-lfs\.github\.com/spec/"),
}
JSON_LINES = "lines of JSON"
ADVICE = {
    JSON_LINES: "give it the ending .jsonl",
    "UTF-32": "convert it to UTF-8, for example with `iconv -f UTF-32 -t UTF-8`",
    "UTF-16": "convert it to UTF-8, for example with `iconv -f UTF-16 -t UTF-8`",
    "an HTML page": "give the file or address of the text itself, and not of a page about it",
    "a Git LFS pointer": "fetch the file with `git lfs pull`",
}
OTHERWISE = "give the file the ending that fits its content"


def seems_to_be(first_bytes: bytes) -> str | None:
    """The format whose files begin like this, or None if it may be text."""
    for name, beginning in BEGINNINGS.items():
        if beginning.match(first_bytes):
            return name
    # a few NULs later in the file are damaged lines; cleaning drops and counts them
    if b"\0" in first_bytes[:16] or first_bytes.count(b"\0") > len(first_bytes) // 10:
        return "binary data"
    return None


def check_content(name: str, named: Format) -> None:
    """Refuse a file whose first bytes do not fit the format or compression in its name.

    Raises:
        InputError: names the file and what it seems to be.
    """
    compression = COMPRESSIONS.get(Path(name.lower()).suffix)
    is_text = named.first_bytes is None
    expected = compression.name if compression else None if is_text else named.title
    first = _first_bytes(name, lambda: io.FileIO(name))
    if not first and expected is None:
        return
    found = seems_to_be(first) or _holds_objects(first, named)
    if found != expected:
        found = found or ("text or damaged" if first else "empty")
        raise InputError(
            f"Corpus file {origin(name)} is named like {expected or 'text'} and seems to be {found}; "
            f"{ADVICE.get(found, OTHERWISE)}."
        )
    if compression and is_text:
        inside = _first_bytes(name, lambda: open_bytes(name))
        found = seems_to_be(inside) or _holds_objects(inside, named)
        if found:
            raise InputError(f"Corpus file {origin(name)} is named like compressed text and seems to hold {found}.")


def _holds_objects(first: bytes, named: Format) -> str | None:
    """`JSON_LINES` if a file that is named like lines of text begins with two JSON objects, each on a line."""
    lines = [line for line in first.split(b"\n")[:-1] if line.strip()][:2] if named.name == "text" else []
    is_json = len(lines) == 2 and all(object_of(line.decode("utf-8-sig", "replace")) for line in lines)
    return JSON_LINES if is_json else None


def _first_bytes(name: str, opened: Callable[[], Any]) -> bytes:
    try:
        with opened() as file:
            first: bytes = file.read(FIRST_BYTES)
            return first
    except Exception as error:  # the decompressors raise exceptions of several libraries
        raise InputError(
            f"Corpus file {origin(name)} cannot be read as what its name says: {one_line(error)}."
        ) from None
