"""A lock on a file, where the file system has locks; between hosts it need not hold. Who has to wait says for whom."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from weakref import WeakSet

from diffcse_scale.foundation.environment import host_name
from diffcse_scale.foundation.errors import InputError, brief

log = logging.getLogger(__name__)

SUFFIX = ".lock"
# what a file system without locks says; EBADF, one that wants to write to what it locks
UNKNOWN = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL, errno.EBADF}
PAUSE, TOLD_AFTER, TOLD_AGAIN = 0.1, 2.0, 60.0  # seconds


@contextmanager
def locked(path: Path, taken: str) -> Iterator[None]:
    """Inside, nobody else has the lock on a file, where the file system has locks.

    Raises:
        InputError: somebody else has it; `taken` says what that means.
    """
    try:
        lock = Lock.take(path)
    except BlockingIOError:
        raise InputError(taken) from None
    try:
        yield
    finally:
        if lock is not None:
            lock.release()


@contextmanager
def shared_lock(place: Path) -> Iterator[bool]:
    """Holds `place`.lock as long as it is entered; whether somebody else had it before.

    Where the file system has no locks nobody is waited for, and where machines do not share them nobody of another
    one: what is done inside must bear company.

    Raises:
        OSError: the file cannot be opened.
    """
    lock, waited = _wait(place.with_name(place.name + SUFFIX), place)
    try:
        yield waited
    finally:
        if lock is not None:
            lock.release()


class Lock:
    """A file that this process has locked, until `release`, or until nobody holds this object."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path, self._descriptor = path, descriptor
        _held.add(self)

    @classmethod
    def take(cls, path: Path) -> Lock | None:
        """Lock a file, which is made if need be; None where the file system has no locks.

        Raises:
            BlockingIOError: somebody else has it.
        """
        while True:
            lock = cls(path, _open(path))
            try:
                fcntl.flock(lock._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                lock.close()
                if error.errno in UNKNOWN:
                    return None
                raise
            if lock.holds():
                return lock
            lock.release()

    def holds(self) -> bool:
        """Whether others meet it: its file may have been taken away, and a new one locked by another."""
        if self._descriptor < 0:
            return False
        try:
            return os.path.samestat(os.fstat(self._descriptor), os.stat(self._path))
        except FileNotFoundError:
            return False

    def sign(self) -> None:
        """Write down whose it is, for those who wait; a file of another user, and a full disk, stay without."""
        since = time.strftime("%Y-%m-%d %H:%M:%S %Z")
        with suppress(OSError):
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, f"{host_name()} (process {os.getpid()}, since {since})".encode(), 0)

    def release(self) -> None:
        """Let others have it, also where a worker has not yet closed what it was forked with."""
        if self._descriptor >= 0:
            with suppress(OSError):
                fcntl.flock(self._descriptor, fcntl.LOCK_UN)
            self.close()

    def close(self) -> None:
        """Know no more of the file; whoever has it open besides holds the lock on."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __del__(self) -> None:
        self.close()


_held: WeakSet[Lock] = WeakSet()


def _leave_to_the_parent() -> None:
    """In a forked worker: one that outlives its parent would hold the lock on."""
    for lock in list(_held):
        lock.close()


os.register_at_fork(after_in_child=_leave_to_the_parent)


def _open(file: Path) -> int:
    try:
        return os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
    except PermissionError:
        if not file.exists():
            raise
        return os.open(file, os.O_RDONLY)  # another user's


def _wait(file: Path, place: Path) -> tuple[Lock | None, bool]:
    """The lock on a file, None where there are none; and whether it had to be waited for."""
    waited, tell = False, time.monotonic() + TOLD_AFTER
    while True:
        try:
            lock = Lock.take(file)
        except BlockingIOError:
            waited = True
            if time.monotonic() >= tell:
                log.info("Waiting for %s, which prepares %s.", _holder(file), place)
                tell = time.monotonic() + TOLD_AGAIN
            time.sleep(PAUSE)
            continue
        if lock is None:
            log.info("Not waiting for other processes, because the file system of %s has no locks.", place)
        else:
            lock.sign()
        return lock, waited


def _holder(file: Path) -> str:
    text = ""
    with suppress(OSError):
        text = file.read_text(encoding="utf-8", errors="replace").strip()
    return brief(text, 200) or "another process"
