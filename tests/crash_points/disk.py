"""What a crash would leave of a folder: the three states of a disk before each file-system event of some processes.

- `killed`: all processes die at once. The system goes on, so everything that was written is there.
- `emptied`: the power fails. All names are there, and of every file what had been flushed: of one that never was,
  0 bytes. So do file systems that write names before contents.
- `forgotten`: the power fails, and nothing is there but what was flushed: neither a name whose folder was not flushed
  after it had come, nor the absence of one that had been there.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.support.file_events import Event

KILLED, EMPTIED, FORGOTTEN = "killed", "emptied", "forgotten"
MODELS = (KILLED, EMPTIED, FORGOTTEN)
FOLDER, LINK = "folder", "link"  # what is no file has these in the place of a content

Tree = dict[str, tuple[str, str]]  # relative name: a file's content by its SHA-256, a folder, or a link and its target


@dataclass(frozen=True)
class Point:
    """Just before an event, or after the end (`number` 0).

    Attributes:
        promised: what the processes had told their user by then.
        states: of each model, the name of its tree.
    """

    number: int
    rank: int
    what: str
    path: str
    promised: str
    states: dict[str, str]


class Disk:
    """The folder and its past, shared by all processes that write there.

    Args:
        folder: what is watched; all that is in it when `begin` is called has been flushed.
        store: where contents, trees and points are kept.
        promise: what has been told to the user, read from the folder.
    """

    def __init__(self, folder: Path, store: Path, promise: Callable[[Path], str] = lambda folder: "") -> None:
        self._folder, self._store, self._promise = folder, store, promise
        self._held: list[int] = []  # as long as somebody has it open, no other file gets its inode

    def begin(self) -> None:
        """Forget what was recorded before."""
        shutil.rmtree(self._store, ignore_errors=True)
        for name in ("contents", "trees", "flushed"):
            (self._store / name).mkdir(parents=True)
        for place, _, names in os.walk(self._folder):
            for path in (place, *(os.path.join(place, name) for name in names)):
                self._flush(path)

    def before(self, event: Event) -> None:
        """Record what a crash would leave now; then the event, if it is a flush."""
        with self._alone():
            self._record(event.number, event.what, os.path.relpath(event.path, self._folder))
            if event.what == "flush":
                self._flush(event.path)

    def end(self) -> None:
        """The processes have ended."""
        with self._alone():
            self._record(0, "end", "")

    def points(self) -> list[Point]:
        """All that were recorded, oldest first."""
        lines = (self._store / "points.jsonl").read_text(encoding="utf-8").splitlines()
        return [Point(**json.loads(line)) for line in lines]

    def restore(self, tree: str, folder: Path) -> None:
        """Make `folder` what was recorded."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        content: Tree = json.loads((self._store / "trees" / tree).read_text(encoding="utf-8"))
        for name, (kind, target) in sorted(content.items()):
            place = folder / name
            if kind == FOLDER:
                place.mkdir(exist_ok=True)
            elif kind == LINK:
                place.symlink_to(target)
            else:
                shutil.copyfile(self._store / "contents" / kind, place)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        with (self._store / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _record(self, number: int, what: str, path: str) -> None:
        live = dict(self._live(self._folder, ""))
        emptied = dict(self._live(self._folder, "", flushed=True))
        trees = {KILLED: live, EMPTIED: emptied, FORGOTTEN: dict(self._flushed(self._folder.stat().st_ino, ""))}
        states = {model: self._keep_tree(tree) for model, tree in trees.items()}
        rank = int(os.environ.get("RANK", "0"))
        point = Point(number, rank, what, path, self._promise(self._folder), states)
        with (self._store / "points.jsonl").open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(asdict(point)) + "\n")

    def _live(self, folder: Path, within: str, flushed: bool = False) -> Iterator[tuple[str, tuple[str, str]]]:
        """The names that are there, with their contents or with those that were flushed."""
        for entry in os.scandir(folder):
            name = f"{within}{entry.name}"
            try:
                if entry.is_symlink():
                    yield name, (LINK, os.readlink(entry.path))
                elif entry.is_dir():
                    yield name, (FOLDER, "")
                    yield from self._live(Path(entry.path), f"{name}/", flushed)
                else:
                    yield name, ((self._content_of(entry.inode()) if flushed else self._keep(Path(entry.path))), "")
            except FileNotFoundError:
                continue  # another process's, gone meanwhile

    def _flushed(self, folder: int, within: str) -> Iterator[tuple[str, tuple[str, str]]]:
        """The names that were flushed, with the contents that were."""
        names = self._store / "flushed" / f"{folder}.names"
        for name, (inode, kind, target) in json.loads(names.read_text()).items() if names.exists() else ():
            yield within + name, ((self._content_of(inode), "") if kind == "file" else (kind, target))
            if kind == FOLDER:
                yield from self._flushed(inode, f"{within}{name}/")

    def _flush(self, path: str) -> None:
        try:
            self._held.append(os.open(path, os.O_RDONLY))
            found = os.fstat(self._held[-1])
        except OSError:
            return
        flushed = self._store / "flushed"
        if not stat.S_ISDIR(found.st_mode):
            (flushed / f"{found.st_ino}.content").write_text(self._keep(Path(path)))
            return
        names = {}
        for entry in os.scandir(path):
            if entry.is_symlink():
                names[entry.name] = (entry.inode(), LINK, os.readlink(entry.path))
            else:
                # held from now on, too: a name that is flushed leads to this file and to no later one
                self._held.append(os.open(entry.path, os.O_RDONLY))
                names[entry.name] = (entry.inode(), FOLDER if entry.is_dir() else "file", "")
        (flushed / f"{found.st_ino}.names").write_text(json.dumps(names))

    def _content_of(self, inode: int) -> str:
        flushed = self._store / "flushed" / f"{inode}.content"
        return flushed.read_text() if flushed.exists() else self._keep_bytes(b"")

    def _keep(self, file: Path) -> str:
        return self._keep_bytes(file.read_bytes())

    def _keep_bytes(self, content: bytes) -> str:
        name = hashlib.sha256(content).hexdigest()
        if not (place := self._store / "contents" / name).exists():
            place.write_bytes(content)
        return name

    def _keep_tree(self, tree: Tree) -> str:
        text = json.dumps(tree, sort_keys=True)
        name = hashlib.sha256(text.encode()).hexdigest()[:16]
        (self._store / "trees" / name).write_text(text, encoding="utf-8")
        return name
