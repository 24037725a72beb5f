"""A file that a user named: read, or a sentence that says why not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from diffcse_scale.foundation.errors import InputError
from diffcse_scale.foundation.text_file import LARGEST, read_text


@pytest.mark.parametrize("content", [b"caf\xc3\xa9", b"\xef\xbb\xbfcaf\xc3\xa9"], ids=["plain", "byte order mark"])
def test_utf8_is_read(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "mine.yaml").write_bytes(content)
    assert read_text(tmp_path / "mine.yaml", "Recipe mine", "look") == "caf\u00e9"


def test_what_is_no_text_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "latin1").write_bytes(b"name: caf\xe9")
    (tmp_path / "long").touch()
    os.truncate(tmp_path / "long", LARGEST + 1)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name, words in {
        "latin1": "mine is not UTF-8 at byte 10",
        "long": "mine is larger than 16 MiB",
        "": "mine cannot be read: no such file; look",
        "pipe": "mine is a pipe or device, which can be read only once; write its text to a file first",
        "loop": "mine cannot be read: no such file; look",
        "x" * 300: "is too long: 300 bytes where 255 are allowed",
        "a\0b": "contains a NUL",
    }.items():
        with pytest.raises(InputError, match=words):
            read_text(tmp_path / name, "mine", "look")
