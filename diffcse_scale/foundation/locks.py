"""Locks on files, if the file system has locks. They may not hold between hosts. A waiting process logs the holder."""

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
# errors of file systems without locks; EBADF: of one that must be able to write to a file to lock it
UNKNOWN = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL, errno.EBADF}
PAUSE, TOLD_AFTER, TOLD_AGAIN = 0.1, 2.0, 60.0  # seconds


@contextmanager
def locked(path: Path, taken: str) -> Iterator[None]:
    """Hold the lock on a file inside the block, if the file system has locks.

    Raises:
        InputError: another process holds the lock; the message is `taken`.
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
    """Wait for the lock `place`.lock and hold it inside the block; yields whether it had to wait.

    On a file system without locks it does not wait. If machines do not share locks, it does not wait for other
    machines. The code inside must therefore be safe to run in several processes at once.

    Raises:
        OSError: the lock file cannot be opened.
    """
    lock, waited = _wait(place.with_name(place.name + SUFFIX), place)
    try:
        yield waited
    finally:
        if lock is not None:
            lock.release()


class Lock:
    """A file lock of this process. It ends with `release`, or when this object is garbage collected."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path, self._descriptor = path, descriptor
        _held.add(self)

    @classmethod
    def take(cls, path: Path) -> Lock | None:
        """Lock a file, which is created if needed; None if the file system has no locks.

        Raises:
            BlockingIOError: another process holds the lock.
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
        """Whether the lock still excludes others. Its file may have been deleted and a new one locked by another."""
        if self._descriptor < 0:
            return False
        try:
            return os.path.samestat(os.fstat(self._descriptor), os.stat(self._path))
        except FileNotFoundError:
            return False

    def sign(self) -> None:
        """Write the holder into the file for those who wait. Fails silently on another user's file or a full disk."""
        since = time.strftime("%Y-%m-%d %H:%M:%S %Z")
        with suppress(OSError):
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, f"{host_name()} (process {os.getpid()}, since {since})".encode(), 0)

    def release(self) -> None:
        """Release the lock, even if a forked worker has not yet closed its copy of the descriptor."""
        if self._descriptor >= 0:
            with suppress(OSError):
                fcntl.flock(self._descriptor, fcntl.LOCK_UN)
            self.close()

    def close(self) -> None:
        """Close the descriptor only. Other processes with a copy of it keep the lock."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __del__(self) -> None:
        self.close()


_held: WeakSet[Lock] = WeakSet()


def _leave_to_the_parent() -> None:
    """Close locks in a forked worker, because a worker that outlives its parent would keep them."""
    for lock in list(_held):
        lock.close()


os.register_at_fork(after_in_child=_leave_to_the_parent)


def _open(file: Path) -> int:
    try:
        return os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
    except PermissionError:
        if not file.exists():
            raise
        return os.open(file, os.O_RDONLY)  # another user's file


def _wait(file: Path, place: Path) -> tuple[Lock | None, bool]:
    """Wait for the lock on a file. Returns it (None without locks), and whether it had to wait."""
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
