"""A lock that is held, that somebody else holds, that was taken away, and a file system without locks."""

from __future__ import annotations

import errno
import fcntl
import multiprocessing
import os

import pytest

from diffcse_scale.foundation.locks import UNKNOWN, Lock


def test_one_has_it_until_it_is_released_or_forgotten(tmp_path):
    lock = Lock.take(tmp_path / "lock")
    assert lock is not None and lock.holds()
    with pytest.raises(BlockingIOError):
        Lock.take(tmp_path / "lock")
    lock.release()
    assert not lock.holds()
    lock = Lock.take(tmp_path / "lock")
    del lock
    assert Lock.take(tmp_path / "lock")


def test_a_lock_whose_file_was_taken_away_holds_nobody_off_and_knows_it(tmp_path):
    lock = Lock.take(tmp_path / "lock")
    (tmp_path / "lock").unlink()
    assert not lock.holds()
    other = Lock.take(tmp_path / "lock")
    assert other.holds() and not lock.holds()


@pytest.mark.parametrize("code", sorted(UNKNOWN))
def test_a_file_system_without_locks_gives_none(tmp_path, monkeypatch, code):
    def refuse(descriptor, operation):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)
    assert Lock.take(tmp_path / "lock") is None


def test_another_error_is_told(tmp_path, monkeypatch):
    def refuse(descriptor, operation):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(OSError, match="Input/output error"):
        Lock.take(tmp_path / "lock")


def _outlive(began, over):
    began.set()
    over.wait()


def test_a_forked_worker_that_outlives_its_parent_holds_nothing(tmp_path):
    lock = Lock.take(tmp_path / "lock")
    fork = multiprocessing.get_context("fork")
    began, over = fork.Event(), fork.Event()
    worker = fork.Process(target=_outlive, args=(began, over), daemon=True)
    worker.start()
    began.wait(10)
    lock.release()  # as the parent's end does
    assert Lock.take(tmp_path / "lock")
    over.set()
    worker.join(10)
