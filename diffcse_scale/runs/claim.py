"""Decides which process may write in the folder of a run, by a lock, signs of life and `incarnations.jsonl`.

The lock decides within a host, and between hosts if the file system supports that. Otherwise the last incarnation
counts as alive while its process exists (same host) or while its last sign of life is recent (another host). An
incarnation gives a sign every few seconds, whatever its main thread is waiting for.
"""

from __future__ import annotations

import os
import threading
import weakref
from contextlib import suppress
from pathlib import Path

import psutil

from diffcse_scale.foundation.errors import InputError, RunEnded
from diffcse_scale.foundation.exit_codes import ExitCode
from diffcse_scale.foundation.locks import Lock
from diffcse_scale.foundation.objects import read_object
from diffcse_scale.foundation.patience import patiently
from diffcse_scale.foundation.run_files import INCARNATIONS, LOCK, STATUS
from diffcse_scale.runs.incarnation import Incarnation, Ownership, incarnations
from diffcse_scale.runs.status import ENDED

# seconds after its last sign of life during which a run on another machine counts as alive
ALIVE = 60.0
# seconds between two signs of life
SIGN = 10.0


class FolderInUse(InputError):
    """Another process writes in the folder."""


def claim(folder: Path, now: Incarnation) -> Ownership:
    """Make `now` the incarnation that owns the run. If several begin at once, one of them gets it.

    Raises:
        FolderInUse: another process works there, and is not an older incarnation of the same job.
        RunEnded: the other process is a later incarnation of the same job.
        OSError: files of the run cannot be read or written.
    """
    file = folder / INCARNATIONS
    while True:
        history = incarnations(file)
        owner = history[-1] if history else None
        lock = _lock(folder, owner, now)
        now = now.model_copy(update={"after": owner.token if owner else ""})
        ownership = Ownership(file, now, lock)
        if ownership.begin():
            return ownership
        if lock is not None:
            lock.release()  # another process's line came first; look again who owns the run


class SignsOfLife:
    """While this is entered a thread gives signs of life, so that other hosts do not take a waiting run for dead."""

    def __init__(self, folder: Path, ownership: Ownership) -> None:
        self._over = threading.Event()
        arguments = (folder, weakref.ref(ownership), self._over)
        self._thread = threading.Thread(target=_give_signs, args=arguments, name="sign of life", daemon=True)

    def __enter__(self) -> SignsOfLife:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()


def _give_signs(folder: Path, reference: weakref.ref[Ownership], over: threading.Event) -> None:
    while not over.wait(SIGN) and (ownership := reference()) is not None:
        with suppress(OSError):  # more important writes will report the problem
            if not ownership.lasts():
                return
            os.utime(folder / INCARNATIONS)
            if ownership.lock is None or not ownership.lock.holds():
                ownership.lock = Lock.take(folder / LOCK)  # the older incarnation may have ended by now
        del ownership


def _lock(folder: Path, owner: Incarnation | None, now: Incarnation) -> Lock | None:
    """Take the lock. None if a requeued job takes over from its older incarnation, or if there are no locks."""
    if owner is not None and owner.succeeds(now):
        raise RunEnded(f"A later incarnation has taken over {folder}.", ExitCode.SUPERSEDED)
    try:
        lock = patiently(lambda: Lock.take(folder / LOCK))
    except BlockingIOError:
        if owner is not None and now.succeeds(owner):
            return None  # the older one may live on behind a dead node or network; it stops by itself
        raise _in_use(folder, owner) from None
    # an older incarnation that is still alive stops by itself; within this process the lock alone decides
    if owner is None or now.succeeds(owner) or _is_this_process(owner, now) or _has_ended(folder, owner):
        return lock
    seconds = None if owner.host == now.host else _since_last_sign(folder)
    if _is_running(owner) if seconds is None else seconds < ALIVE:
        if lock is not None:
            lock.release()
        raise _in_use(folder, owner, seconds)
    return lock


def _in_use(folder: Path, owner: Incarnation | None, seconds: float | None = None) -> FolderInUse:
    if seconds is None:
        writer = owner or "another process"
        return FolderInUse(f"{folder} is being written by {writer}; wait for it or give another --output.")
    return FolderInUse(
        f"{folder} was being written by {owner} {seconds:.0f} seconds ago; stop it, or wait {ALIVE - seconds:.0f} "
        "seconds if it is dead, or give another --output."
    )


def _is_this_process(owner: Incarnation, now: Incarnation) -> bool:
    return (owner.host, owner.process) == (now.host, now.process)


def _has_ended(folder: Path, owner: Incarnation) -> bool:
    """Whether the owner's last status says that it has ended. Earlier versions wrote no incarnation into it."""
    try:
        status = read_object(folder / STATUS)
    except InputError:
        return False
    return status.get("state") in ENDED and status.get("incarnation", owner.token) == owner.token


def _is_running(owner: Incarnation) -> bool:
    """Whether the owner's process runs on this host; another process that has the same PID by now does not count."""
    try:
        return psutil.Process(owner.process).create_time() < owner.began + 1
    except psutil.Error:
        return False


def _since_last_sign(folder: Path) -> float:
    """Seconds since the owner's last sign of life, by the file system's clock."""

    def look() -> float:
        (folder / LOCK).touch()
        signs = [file.stat().st_mtime for name in (INCARNATIONS, STATUS) if (file := folder / name).is_file()]
        return max(0.0, (folder / LOCK).stat().st_mtime - max(signs))

    return patiently(look)
