"""What was made is written when the disk takes it."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from diffcse_scale.foundation.durable import write_durably
from diffcse_scale.foundation.patience import until_written
from tests.support.file_events import FileEvents, fail


def test_what_cannot_be_written_at_once_is_written_later(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with FileEvents([tmp_path], fail(1, errno.ENOSPC, times=3), only="open"):
        until_written(lambda: write_durably("made", tmp_path / "file"), "The file", period=0)
    assert (tmp_path / "file").read_text() == "made"
    assert caplog.text.count("cannot be written yet") == 1 and "No space left on device; free some space" in caplog.text


def test_in_the_end_it_is_given_up_and_an_error_of_the_program_at_once(tmp_path: Path) -> None:
    with FileEvents([tmp_path], fail(1, errno.EROFS, times=1000)), pytest.raises(OSError, match="Read-only"):
        until_written(lambda: write_durably("made", tmp_path / "file"), "The file", patience=0.01, period=0.001)
    with pytest.raises(ZeroDivisionError):
        until_written(lambda: [][1 // 0], "Nothing")
