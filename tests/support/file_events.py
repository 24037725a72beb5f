"""The file-system calls of a process, numbered, and what a test does just before one of them.

An event is a call that changes what lies under the watched folders: a file opened for writing, written, cut, flushed to
the disk, renamed, linked or removed; a folder made, flushed or removed. Of the writes to a file since it was opened the
first two are events: the file is empty, then cut short. With `reads`, looking is an event too: `stat`, a listing, a
file opened for reading.

What is written below Python (safetensors, a memory map, Arrow) is no event by itself; it is seen at the next one.

    with FileEvents([run], fail(3, errno.ESTALE), only="stat", reads=True):
        ...                                             # the third `stat` under `run` raises OSError

    launch("--recipe", ..., program=PROGRAMS / "counted_program.py")      # with $FILE_EVENTS, see `from_environment`
"""

from __future__ import annotations

import builtins
import errno
import io
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

VARIABLE = "FILE_EVENTS"
WRITES = 2  # of each opening that count
TWO_PATHS = {"rename": "rename", "replace": "rename", "link": "link", "symlink": "link"}
ONE_PATH = {"unlink": "remove", "remove": "remove", "rmdir": "remove", "mkdir": "mkdir", "truncate": "cut"}
DESCRIPTOR = {"fsync": "flush", "fdatasync": "flush", "ftruncate": "cut", "write": "write", "sendfile": "write"}
LOOKS = {"stat": "stat", "lstat": "stat", "scandir": "list", "listdir": "list"}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class Event(NamedTuple):
    """One call: its number, from 1 on; what it does; where."""

    number: int
    what: str
    path: str


Act = Callable[[Event], None]


def kill(at: int) -> Act:
    """End the process before the event number `at`, as a power cut would."""

    def act(event: Event) -> None:
        if event.number == at:
            os.kill(os.getpid(), signal.SIGKILL)

    return act


def fail(at: int, code: int, times: int = 1) -> Act:
    """The events from `at` on raise the OSError of `code`, so many `times`."""

    def act(event: Event) -> None:
        if at <= event.number < at + times:
            raise OSError(code, os.strerror(code), event.path)

    return act


class FileEvents:
    """Counts while it is entered, in the whole process; one at a time.

    Args:
        under: the folders, there or not.
        act: called before each event, on the thread of the call.
        only: the one kind that counts: "open", "write", "cut", "flush", "rename", "link", "remove", "mkdir"; with
            `reads`, "stat", "list" or "read".
        named: a part of the paths that count.
        reads: whether looking counts too.
    """

    def __init__(
        self, under: Iterable[Path], act: Act, *, only: str | None = None, named: str = "", reads: bool = False
    ) -> None:
        self._under = [os.path.realpath(folder) for folder in under]
        self._act, self._only, self._named, self._reads = act, only, named, reads
        self._lock, self._inside = threading.RLock(), threading.local()
        self._originals: list[tuple[Any, str, Any]] = []
        self.count = 0

    def __enter__(self) -> FileEvents:
        for name, what in {**TWO_PATHS, **ONE_PATH, **(LOOKS if self._reads else {})}.items():
            self._replace(os, name, self._on_paths(getattr(os, name), what, both=name in TWO_PATHS))
        for name, what in DESCRIPTOR.items():
            self._replace(os, name, self._on_descriptor(getattr(os, name), what))
        self._replace(os, "open", self._on_os_open(os.open))
        opened = self._on_open(io.open)
        for module in (io, builtins):
            self._replace(module, "open", opened)
        if (safetensors := sys.modules.get("safetensors.torch")) is not None:
            self._replace(safetensors, "serialize_file", self._on_serialize(safetensors.serialize_file))
        return self

    def __exit__(self, *error: object) -> None:
        for module, name, original in reversed(self._originals):
            setattr(module, name, original)
        self._originals.clear()

    def happens(self, what: str, *paths: Any, directory: int | None = None) -> None:
        """An event, if one of `paths` (names or descriptors) counts and this thread is not already within one."""
        if getattr(self._inside, "now", False) or self._only not in (None, what):
            return
        self._inside.now = True
        try:
            found = [name for path in paths if (name := self._watched(path, directory)) is not None]
            if found:
                with self._lock:
                    self.count += 1
                    self._act(Event(self.count, what, found[0]))
        finally:
            self._inside.now = False

    def _watched(self, path: Any, directory: int | None) -> str | None:
        try:
            if isinstance(path, int):
                name = os.readlink(f"/proc/self/fd/{path}")
            else:
                base = os.getcwd() if directory is None else os.readlink(f"/proc/self/fd/{directory}")
                name = os.path.join(base, os.fsdecode(path))
                name = os.path.join(os.path.realpath(os.path.dirname(name)), os.path.basename(name))
        except (OSError, TypeError):
            return None
        inside = any(name == folder or name.startswith(folder + os.sep) for folder in self._under)
        return name if inside and self._named in name else None

    def _replace(self, module: Any, name: str, by: Any) -> None:
        self._originals.append((module, name, getattr(module, name)))
        setattr(module, name, by)

    def _on_paths(self, original: Any, what: str, both: bool) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            directory = next((named[key] for key in ("dir_fd", "src_dir_fd") if named.get(key) is not None), None)
            self.happens(what, *arguments[: 2 if both else 1], directory=directory)
            return original(*arguments, **named)

        return call

    def _on_descriptor(self, original: Any, what: str) -> Any:
        def call(descriptor: Any, *rest: Any, **named: Any) -> Any:
            self.happens(what, descriptor if isinstance(descriptor, int) else descriptor.fileno())
            return original(descriptor, *rest, **named)

        return call

    def _on_os_open(self, original: Any) -> Any:
        def call(path: Any, flags: int, *rest: Any, **named: Any) -> Any:
            if flags & WRITING:
                self.happens("open", path, directory=named.get("dir_fd"))
            elif self._reads:
                self.happens("read", path, directory=named.get("dir_fd"))
            return original(path, flags, *rest, **named)

        return call

    def _on_open(self, original: Any) -> Any:
        def call(file: Any, mode: str = "r", buffering: int = -1, *rest: Any, **named: Any) -> Any:
            if isinstance(file, int) or named.get("opener") is not None or len(rest) > 3:
                return original(file, mode, buffering, *rest, **named)
            if not set(mode) & set("wax+"):
                if self._reads:
                    self.happens("read", file)
                return original(file, mode, buffering, *rest, **named)
            if self._watched(file, None) is None:
                return original(file, mode, buffering, *rest, **named)
            self.happens("open", file)
            return _buffered(_File(self, file, mode), mode, buffering, *rest, **named)

        return call

    def _on_serialize(self, original: Any) -> Any:
        def call(tensors: Any, path: Any, *rest: Any, **named: Any) -> Any:
            self.happens("open", path)
            return original(tensors, path, *rest, **named)

        return call


class _File(io.FileIO):
    """A file whose writes are events."""

    def __init__(self, events: FileEvents, path: Any, mode: str) -> None:
        super().__init__(path, mode.replace("t", "").replace("b", ""))
        self._events, self._writes = events, 0

    def write(self, content: Any) -> int:
        self._writes += 1
        if self._writes <= WRITES:
            self._events.happens("write", self.name)
        return super().write(content)

    def truncate(self, size: int | None = None) -> int:
        self._events.happens("cut", self.name)
        return super().truncate(size)


def _buffered(
    raw: _File,
    mode: str,
    buffering: int,
    encoding: str | None = None,
    errors: str | None = None,
    newline: str | None = None,
    **named: Any,
) -> Any:
    """What `open` puts around a file."""
    if "b" in mode and buffering == 0:
        return raw
    size = buffering if buffering > 1 else io.DEFAULT_BUFFER_SIZE
    binary: Any = io.BufferedRandom(raw, size) if "+" in mode else io.BufferedWriter(raw, size)
    if "b" in mode:
        return binary
    text = io.TextIOWrapper(binary, encoding, errors, newline, line_buffering=buffering == 1)
    text.mode = mode
    return text


def variable(under: Iterable[Path], do: str = "", at: int = 0, **options: Any) -> dict[str, str]:
    """The environment of `counted_program.py`.

    Args:
        do: "kill", the name of an error ("ESTALE"), or nothing.
        at: the number of the event.
        options: `times`, of an error; `rank`, the only one that counts; `log`, a file to which each event is written;
            and those of `FileEvents`.
    """
    return {VARIABLE: json.dumps({"under": [str(folder) for folder in under], "do": do, "at": at, **options})}


def from_environment() -> FileEvents | None:
    """What $FILE_EVENTS asks for, not yet entered; None where it asks for nothing, or for another rank."""
    asked = json.loads(os.environ.get(VARIABLE, "null"))
    if asked is None or asked.pop("rank", None) not in (None, int(os.environ.get("RANK", "0"))):
        return None
    do, at, times, log = asked.pop("do"), asked.pop("at"), asked.pop("times", 1), asked.pop("log", None)
    then = kill(at) if do == "kill" else fail(at, getattr(errno, do), times) if do else lambda event: None
    if log is None:
        return FileEvents(map(Path, asked.pop("under")), then, **asked)
    lines = open(log, "a", buffering=1, encoding="utf-8")  # noqa: SIM115  as long as the process lives

    def act(event: Event) -> None:
        lines.write(f"{event.number} {event.what} {event.path}\n")
        then(event)

    return FileEvents(map(Path, asked.pop("under")), act, **asked)
