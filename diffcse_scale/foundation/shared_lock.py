"""A lock that processes share through a file; who has to wait says for whom."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from diffcse_scale.foundation.environment import host_name
from diffcse_scale.foundation.errors import brief, system_reason

log = logging.getLogger(__name__)

SUFFIX = ".lock"
# of a file system that has no such locks; EBADF: one that wants to write to what it locks
NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EBADF}
PAUSE, TOLD_AFTER, TOLD_AGAIN = 0.1, 2.0, 60.0  # seconds

_held: set[int] = set()  # descriptors


@contextmanager
def shared_lock(place: Path) -> Iterator[bool]:
    """Holds `place`.lock as long as it is entered; whether somebody else had it before.

    Where the file system has no locks nobody is waited for, and where machines do not share them nobody of another
    one: what is done inside must bear company.

    Raises:
        OSError: the file cannot be opened.
    """
    descriptor = _open(place.with_name(place.name + SUFFIX))
    _held.add(descriptor)
    try:
        yield _acquire(descriptor, place)
    finally:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_UN)
        _held.discard(descriptor)
        os.close(descriptor)


def _open(file: Path) -> int:
    try:
        return os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
    except PermissionError:
        if not file.exists():
            raise
        return os.open(file, os.O_RDONLY)  # another user's


def _acquire(descriptor: int, place: Path) -> bool:
    """Whether it had to be waited for."""
    begin = time.monotonic()
    waited, tell = False, begin + TOLD_AFTER
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waited = True
            if time.monotonic() >= tell:
                log.info("Waiting for %s, who prepares %s.", _holder(descriptor), place)
                tell = time.monotonic() + TOLD_AGAIN
            time.sleep(PAUSE)
            continue
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            log.info("Nobody else is waited for: %s cannot be locked (%s).", place, system_reason(error))
        else:
            _sign(descriptor)
        return waited


def _sign(descriptor: int) -> None:
    """For those who wait; a file of another user, and a full disk, stay without."""
    since = time.strftime("%Y-%m-%d %H:%M:%S %Z")
    with suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{host_name()} (process {os.getpid()}, since {since})".encode(), 0)


def _holder(descriptor: int) -> str:
    text = ""
    with suppress(OSError):
        text = os.pread(descriptor, 200, 0).decode(errors="replace").strip()
    return brief(text, 200) or "another process"


def _leave_to_the_parent() -> None:
    """A worker that outlives a killed parent would hold its locks."""
    for descriptor in _held:
        with suppress(OSError):
            os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_leave_to_the_parent)
