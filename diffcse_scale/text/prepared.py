"""Entries of the cache: checked before anything is locked or written, and made where they are missing or damaged.

What is made gets its name when the disk has all of it. Until then it has a name of its process's own, so that machines
that share no locks may make the same at once: the first to finish is taken by the others.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar
from uuid import uuid4

from diffcse_scale.foundation.durable import publish
from diffcse_scale.foundation.environment import host_name
from diffcse_scale.foundation.errors import InputError, one_line, system_reason
from diffcse_scale.foundation.file_digest import sha256_of
from diffcse_scale.foundation.locks import shared_lock
from diffcse_scale.foundation.strict_json import to_json
from diffcse_scale.text.cache import try_to_write, writing
from diffcse_scale.text.digests import digest, remember

log = logging.getLogger(__name__)

Found = TypeVar("Found")

CONTENTS = ".contents.json"  # in a folder: size and SHA-256 of its files; those of earlier versions have none
UNFINISHED = ".unfinished"
BETWEEN = "~"  # in the name of what is unfinished
PATIENCE = 5.0  # seconds in which one machine sees what another has written
ABANDONED = 86_400.0  # seconds after which nobody comes back for what he has begun
TAKEN = {errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR, errno.EISDIR}  # of a name
# what the libraries raise for a file that is cut, empty or overwritten; of the system's errors those without a number
NO_CONTENT = (ValueError, LookupError, TypeError, AttributeError, EOFError)


class Damaged(Exception):
    """An entry of the cache is not what was written there. The message says how."""


def prepared(place: Path, cache: Path, read: Callable[[Path], Found], make: Callable[[Path], object]) -> Found:
    """What `read` finds at `place`, which is made if it is not there or is damaged.

    Of several ranks or programs one makes it and the others wait. What is whole is only read: no lock is taken and
    nothing written, so that it may be another user's.

    Args:
        place: a file or a folder.
        cache: the folder that it lies in, at any depth.
        read: of a path; raises an error of Python's own for what is damaged.
        make: writes it to a path at which nothing is.

    Raises:
        InputError: it cannot be read; it has to be made, and the cache cannot be written.
    """
    with suppress(FileNotFoundError, Damaged):
        return whole(place, cache, read)
    with writing(cache):
        place.parent.mkdir(parents=True, exist_ok=True)
        try_to_write(cache)
        with shared_lock(place) as waited:
            found, damage = _made_by_another(place, cache, read, PATIENCE if waited else 0)
            if found is not None:
                return found
            if damage is not None:  # whichever rank it is: only one does this
                log.error("Made again, because it is damaged: %s (%s).", place, damage)
            with unfinished(place, cache) as fresh:
                make(fresh)
                _list_contents(fresh, place, cache)
                _publish(fresh, place, cache, read)
            found, damage = _made_by_another(place, cache, read, PATIENCE)
    if found is None:
        raise InputError(f"{place} was {damage or 'removed'} as soon as it was made; check the cache's disk.")
    return found


def whole(place: Path, cache: Path, read: Callable[[Path], Found]) -> Found:
    """What `read` finds at `place`.

    Raises:
        FileNotFoundError: nothing is there.
        Damaged: it is not what was written.
        InputError: it cannot be read.
    """
    for patience in (True, True, False):
        try:
            if place.exists():
                check_contents(place, cache)
                return read(place)
        except NO_CONTENT as error:
            raise Damaged(one_line(error)) from None
        except OSError as error:
            if error.errno is None or error.errno in (errno.ENOENT, *TAKEN):
                raise Damaged(one_line(error)) from None
            if not (patience and error.errno == errno.ESTALE):
                raise InputError(
                    f"{place} cannot be read ({system_reason(error)}); fix that and repeat the command."
                ) from error
        else:
            raise FileNotFoundError(place)
        _look_again(place)
    raise AssertionError


def check_contents(place: Path, cache: Path) -> None:
    """Hold the files of a folder against the list that was made of them.

    A file is hashed again only when it may have been written to since: `digest` remembers.

    Raises:
        Damaged: names a file that is missing or has other bytes.
    """
    if not (place / CONTENTS).is_file():
        return
    for name, (size, expected) in json.loads((place / CONTENTS).read_text(encoding="utf-8")).items():
        file = place / name
        if not file.is_file():
            raise Damaged(f"{name} is missing")
        if (found := file.stat().st_size) != size:
            raise Damaged(f"{name} has {found:,} bytes instead of {size:,}")
        if digest(file, cache) != expected:
            raise Damaged(f"the bytes of {name} are not those that were written")


@contextmanager
def unfinished(place: Path, cache: Path) -> Iterator[Path]:
    """A path beside `place` that no other process has; what is left there in the end is removed.

    What killed processes have left in the cache is removed, too: of this machine those that live no more, of others
    after a day.
    """
    for left in (*cache.glob(f"*{UNFINISHED}"), *cache.glob(f"*/*{UNFINISHED}")):
        if _is_abandoned(left):
            _remove(left)
    name = BETWEEN.join((place.name, *_process(), uuid4().hex[:8]))
    fresh = place.with_name(name + UNFINISHED)
    try:
        yield fresh
    finally:
        _remove(fresh)


def _made_by_another(
    place: Path, cache: Path, read: Callable[[Path], Found], patience: float
) -> tuple[Found | None, str | None]:
    """What is there after all; else how it is damaged, if anything is there."""
    deadline = time.monotonic() + patience
    while True:
        try:
            return whole(place, cache, read), None
        except FileNotFoundError:
            damage = None
        except Damaged as error:
            damage = str(error)
        if time.monotonic() >= deadline:
            return None, damage
        _look_again(place)


def _look_again(place: Path) -> None:
    """A listing makes a file server's client ask whether anything has changed."""
    time.sleep(0.2)
    with suppress(OSError):
        os.listdir(place.parent)


def _list_contents(fresh: Path, place: Path, cache: Path) -> None:
    """Write size and digest of each file of a folder into it, and remember them for where it will lie."""
    if not fresh.is_dir():
        return
    files = sorted(file for file in fresh.rglob("*") if file.is_file() and not file.is_symlink())
    listed = {file.relative_to(fresh).as_posix(): (file.stat().st_size, sha256_of(file)) for file in files}
    (fresh / CONTENTS).write_text(to_json(listed, indent=1), encoding="utf-8")
    for name, (_, found) in listed.items():
        remember(found, place / name, (fresh / name).stat(), cache)


def _publish(fresh: Path, place: Path, cache: Path, read: Callable[[Path], Found]) -> None:
    """Give it its name, unless another has been faster; what is damaged gives way."""
    for last in (False, False, True):
        try:
            return publish(fresh, place)
        except OSError as error:
            if last or error.errno not in TAKEN:
                raise
        if _made_by_another(place, cache, read, 0)[0] is not None:
            return
        with unfinished(place, cache) as aside, suppress(FileNotFoundError):
            place.rename(aside)


def _process() -> tuple[str, str, str]:
    """Machine, space of process numbers (containers have their own) and number."""
    space = Path("/proc/self/ns/pid")
    return host_name(), str(space.stat().st_ino if space.exists() else 0), str(os.getpid())


def _is_abandoned(left: Path) -> bool:
    *_, host, space, number, _ = ["", "", "", *left.name.split(BETWEEN)]
    if (host, space) == _process()[:2] and number.isdecimal():
        return not Path("/proc", number).exists()
    with suppress(OSError):
        newest = max(file.lstat().st_mtime for file in (left, *left.rglob("*")))
        return time.time() - newest > ABANDONED
    return False


def _remove(left: Path) -> None:
    """Whatever it is, as far as that is possible."""
    if left.is_dir():
        shutil.rmtree(left, ignore_errors=True)
    else:
        with suppress(OSError):
            left.unlink(missing_ok=True)
