"""A lock on a file, where the file system has locks; between hosts it need not hold."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from weakref import WeakSet

UNKNOWN = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL}  # what a file system without locks says


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Inside, nobody else has the lock on a file, where the file system has locks.

    Raises:
        BlockingIOError: somebody else has it.
    """
    lock = Lock.take(path)
    try:
        yield
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
            lock = cls(path, os.open(path, os.O_RDWR | os.O_CREAT, 0o666))
            try:
                fcntl.flock(lock._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                lock.release()
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

    def release(self) -> None:
        """Let others have it."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __del__(self) -> None:
        self.release()


_held: WeakSet[Lock] = WeakSet()


def _leave_to_the_parent() -> None:
    """In a forked worker: one that outlives its parent would hold the lock on."""
    for lock in list(_held):
        lock.release()


os.register_at_fork(after_in_child=_leave_to_the_parent)
