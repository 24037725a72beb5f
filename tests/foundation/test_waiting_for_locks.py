"""Processes take turns where the file system has locks, and say for whom they wait; where it has none, nobody waits."""

from __future__ import annotations

import errno
import fcntl
import logging
import multiprocessing
import os
import signal
import socket
import time
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from diffcse_scale.foundation import locks as module
from diffcse_scale.foundation.locks import shared_lock

PROCESSES = multiprocessing.get_context("fork")


def hold(place: Path, line: Connection) -> None:
    """Until a word comes."""
    with shared_lock(place):
        line.send("held")
        line.recv()


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "tokens-1"


def test_who_waits_says_for_whom_and_since_when(
    place: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    line, other = PROCESSES.Pipe()
    process = PROCESSES.Process(target=hold, args=(place, other))
    process.start()
    assert line.recv() == "held"
    monkeypatch.setattr(module, "TOLD_AFTER", 0.0)
    monkeypatch.setattr(module.time, "sleep", lambda _: line.send("enough"))
    with caplog.at_level(logging.INFO), shared_lock(place) as waited:
        assert waited
    process.join()
    (said,) = [record.message for record in caplog.records]  # once, and only then now and then
    begin = f"Waiting for {socket.gethostname()} (process {process.pid}, since {time.strftime('%Y-%m-%d')} "
    assert said.startswith(begin) and said.endswith(f"), which prepares {place}.")
    with shared_lock(place) as waited:
        assert not waited


@pytest.mark.parametrize("code", ["ENOSYS", "ENOLCK", "EOPNOTSUPP"])
def test_a_file_system_without_locks_lets_everybody_in_at_once(
    place: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(getattr(errno, code), os.strerror(getattr(errno, code)))

    place.with_name("tokens-1.lock").touch()  # as an earlier program has left it
    monkeypatch.setattr(fcntl, "flock", refuse)
    with caplog.at_level(logging.INFO), shared_lock(place) as first, shared_lock(place) as second:
        assert not first and not second
    assert f"the file system of {place} has no locks" in caplog.text


def test_a_worker_that_outlives_its_killed_parent_holds_nothing(place: Path) -> None:
    line, other = PROCESSES.Pipe()

    def parent() -> None:
        with shared_lock(place):
            worker = os.fork()
            if not worker:
                time.sleep(2)
                os._exit(0)
            other.send(worker)
            signal.pause()

    process = PROCESSES.Process(target=parent)
    process.start()
    worker = line.recv()
    process.kill()
    process.join()
    try:
        time.sleep(0.05)  # it has begun
        with shared_lock(place) as waited:
            assert not waited
    finally:
        os.kill(worker, signal.SIGKILL)


def test_a_lock_file_of_another_user_is_locked_as_it_is(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It can be read only."""
    with shared_lock(place):
        pass
    opened = os.open

    def refuse(path: Path, flags: int, *mode: int) -> int:
        if flags & os.O_RDWR and path == place.with_name("tokens-1.lock"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opened(path, flags, *mode)

    monkeypatch.setattr(os, "open", refuse)
    with shared_lock(place):
        descriptor = opened(place.with_name("tokens-1.lock"), os.O_RDONLY)
        with pytest.raises(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(descriptor)
