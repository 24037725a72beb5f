"""Who may write in the folder of a run: one process, known by its lock, its signs of life and its line.

Within a host, and where a file system takes locks across hosts, the lock says it. Else the last incarnation counts as
alive as long as its process is there (on this host) or its last sign of life is not old (on another): it gives one
every few seconds, whatever its main thread is waiting for.
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

# seconds after its last sign of life for which a run on another machine counts as alive
ALIVE = 60.0
# seconds between two signs
SIGN = 10.0


class FolderInUse(InputError):
    """Another process writes there."""


def claim(folder: Path, now: Incarnation) -> Ownership:
    """Make `now` the incarnation that has the run. Of several that begin at once one gets it.

    Raises:
        FolderInUse: another process is at work there, and is no older incarnation of the same job.
        RunEnded: it is a later one.
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
            lock.release()  # somebody's line came first: who is that?


class SignsOfLife:
    """A thread gives signs of life while this is entered, so that no other host takes a waiting run for dead."""

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
        with suppress(OSError):  # what matters more will say so
            if not ownership.lasts():
                return
            os.utime(folder / INCARNATIONS)
            if ownership.lock is None or not ownership.lock.holds():
                ownership.lock = Lock.take(folder / LOCK)  # the older incarnation may have gone
        del ownership


def _lock(folder: Path, owner: Incarnation | None, now: Incarnation) -> Lock | None:
    """The lock; None where a requeued job takes the run over from its older incarnation, or there are no locks."""
    if owner is not None and owner.succeeds(now):
        raise RunEnded(f"A later incarnation has taken over {folder}.", ExitCode.SUPERSEDED)
    try:
        lock = patiently(lambda: Lock.take(folder / LOCK))
    except BlockingIOError:
        if owner is not None and now.succeeds(owner):
            return None  # it may live on behind a dead node or network; it stops by itself
        raise _in_use(folder, owner) from None
    # an older incarnation that lives on stops by itself; and within this process the lock says it all
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
    """Whether the owner's own last word is that it has ended; earlier versions did not sign theirs."""
    try:
        status = read_object(folder / STATUS)
    except InputError:
        return False
    return status.get("state") in ENDED and status.get("incarnation", owner.token) == owner.token


def _is_running(owner: Incarnation) -> bool:
    """Whether the owner's process is on this host, and not another that has its number by now."""
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
