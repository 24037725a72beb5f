"""Entries of the cache: checked before anything is locked or written, and made if they are missing or damaged.

A new entry gets its name once all of it is on the disk. Until then it has a temporary name, unique to its process. So
machines that do not share locks may make the same entry at once, and the others use the one that is finished first.
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

CONTENTS = ".contents.json"  # in a folder: size and SHA-256 of its files; folders of earlier versions have none
UNFINISHED = ".unfinished"
BETWEEN = "~"  # separates the parts of an unfinished entry's name
PATIENCE = 5.0  # seconds until one machine sees what another has written
ABANDONED = 86_400.0  # seconds after which an unfinished entry of another machine counts as abandoned
TAKEN = {errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR, errno.EISDIR}  # errors for a name that is already taken
# what the libraries raise for a file that is truncated, empty or overwritten, and OSErrors without a number
NO_CONTENT = (ValueError, LookupError, TypeError, AttributeError, EOFError)


class Damaged(Exception):
    """An entry of the cache differs from what was written. The message says how."""


def prepared(place: Path, cache: Path, read: Callable[[Path], Found], make: Callable[[Path], object]) -> Found:
    """Read the entry at `place`; make it first if it is missing or damaged.

    If several ranks or programs need it, one makes it and the others wait. An intact entry is only read: no lock is
    taken and nothing is written, so it may belong to another user.

    Args:
        place: a file or a folder.
        cache: the folder that contains it, at any depth.
        read: reads a path; raises one of `NO_CONTENT` if it is damaged.
        make: writes the entry to a path that does not exist yet.

    Raises:
        InputError: the entry cannot be read, or it must be made and the cache cannot be written.
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
            if damage is not None:  # logged on any rank, because only one rank gets here
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
    """Read the entry at `place`, after checking that it is intact.

    Raises:
        FileNotFoundError: there is no entry.
        Damaged: the entry differs from what was written.
        InputError: the entry cannot be read.
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
    """Compare the files of a folder with the list that was written with them.

    A file is hashed again only if it may have been written to since, because `digest` caches its result.

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
    """Yield a path beside `place` that no other process uses; anything left there at the end is removed.

    This also removes what killed processes have left in the cache. Leftovers of this machine are removed if their
    process no longer exists, those of other machines after a day.
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
    """The entry, if another process has made it meanwhile; else how it is damaged, if there is one."""
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
    """Wait a little and list the folder, which makes the client of a file server look for changes."""
    time.sleep(0.2)
    with suppress(OSError):
        os.listdir(place.parent)


def _list_contents(fresh: Path, place: Path, cache: Path) -> None:
    """Write the size and digest of each file into the folder, and cache the digests for the files' future paths."""
    if not fresh.is_dir():
        return
    files = sorted(file for file in fresh.rglob("*") if file.is_file() and not file.is_symlink())
    listed = {file.relative_to(fresh).as_posix(): (file.stat().st_size, sha256_of(file)) for file in files}
    (fresh / CONTENTS).write_text(to_json(listed, indent=1), encoding="utf-8")
    for name, (_, found) in listed.items():
        remember(found, place / name, (fresh / name).stat(), cache)


def _publish(fresh: Path, place: Path, cache: Path, read: Callable[[Path], Found]) -> None:
    """Give the new entry its name, unless another process was faster; a damaged entry is replaced."""
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
    """This process's machine, PID namespace (containers have their own) and PID."""
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
    """Remove a file or folder as far as possible."""
    if left.is_dir():
        shutil.rmtree(left, ignore_errors=True)
    else:
        with suppress(OSError):
            left.unlink(missing_ok=True)
