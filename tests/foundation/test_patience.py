"""What passes is waited for, what stays is told, and what waiting does not help is told at once."""

from __future__ import annotations

import errno
from pathlib import Path
from types import SimpleNamespace

import pytest

from diffcse_scale.foundation import patience
from diffcse_scale.foundation.durable import write_durably
from diffcse_scale.foundation.patience import patiently, until_written
from tests.support.file_events import FileEvents, fail


@pytest.fixture
def clock(monkeypatch):
    """Time that passes when somebody sleeps."""
    now = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(patience, "time", SimpleNamespace(monotonic=lambda: now.seconds, sleep=lambda s: _pass(now, s)))
    return now


def _pass(now, seconds):
    now.seconds += seconds


def _failing(times, code):
    calls = []

    def do():
        calls.append(code)
        if len(calls) <= times:
            raise OSError(code, "no", "file")
        return len(calls)

    return do, calls


def test_an_error_that_passes_is_forgotten(clock):
    do, _ = _failing(3, errno.ESTALE)
    assert patiently(do) == 4 and 0 < clock.seconds < 1


def test_an_error_that_stays_is_told_after_a_while(clock):
    do, _ = _failing(10**6, errno.EIO)
    with pytest.raises(OSError) as error:
        patiently(do)
    assert (error.value.errno, error.value.filename) == (errno.EIO, "file")
    assert patience.PATIENCE / 2 < clock.seconds <= patience.PATIENCE


@pytest.mark.parametrize("code", [errno.ENOENT, errno.EACCES, errno.ENOSPC, errno.EAGAIN])
def test_an_error_that_is_an_answer_is_told_at_once(clock, code):
    do, calls = _failing(1, code)
    with pytest.raises(OSError):
        patiently(do)
    assert len(calls) == 1 and clock.seconds == 0


def test_what_cannot_be_written_at_once_is_written_later(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with FileEvents([tmp_path], fail(1, errno.ENOSPC, times=3), only="open"):
        until_written(lambda: write_durably("made", tmp_path / "file"), "The file", period=0)
    assert (tmp_path / "file").read_text() == "made"
    assert caplog.text.count("cannot be written yet") == 1 and "No space left on device; free disk space" in caplog.text


def test_in_the_end_it_is_given_up_and_an_error_of_the_program_at_once(tmp_path: Path) -> None:
    with FileEvents([tmp_path], fail(1, errno.EROFS, times=1000)), pytest.raises(OSError, match="Read-only"):
        until_written(lambda: write_durably("made", tmp_path / "file"), "The file", patience=0.01, period=0.001)
    with pytest.raises(ZeroDivisionError):
        until_written(lambda: [][1 // 0], "Nothing")
