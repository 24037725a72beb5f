"""What an encoded folder is made of, and how much of it is done.

    manifest.json       model, input, options and, for int8, the ranges: written before the first shard
    shards.jsonl        a line for each finished shard, appended when it is on the disk; sorted at the end
    embeddings-*        the shards

Nothing in it depends on when the work was interrupted, or on how often.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from diffcse_scale.durable import write_durably
from diffcse_scale.encoding.encoder import Floats
from diffcse_scale.encoding.shards import PARTIAL, shard_name
from diffcse_scale.errors import InputError

MANIFEST, JOURNAL, LOCK = "manifest.json", "shards.jsonl", ".lock"
FORMAT = 1
MODEL_FILES = {".json", ".safetensors", ".bin", ".txt", ".model"}
WHERE = "model_folder"  # may change: the model's content counts


class Manifest:
    """The record of an encoded folder.

    Attributes:
        facts: the content of `manifest.json`.
        shards: facts of the finished shards, by number: rows, dimension, tokens, flaws, bytes, sha256.
    """

    def __init__(self, folder: Path, facts: dict[str, Any]) -> None:
        self.folder, self.facts = folder, facts
        self.shards = {shard["shard"]: shard for shard in self._finished()}

    @property
    def count(self) -> int:
        """Shards of the whole."""
        return -(-int(self.facts["rows"]) // int(self.facts["window"]))

    @property
    def pending(self) -> list[int]:
        """Numbers of the shards that are yet to be made."""
        return [number for number in range(self.count) if number not in self.shards]

    @property
    def ranges(self) -> Floats | None:
        """Of int8, [2, dimension]; None where there are none."""
        found = self.facts["ranges"]
        return None if found is None else np.array(found, np.float32)

    def file(self, number: int) -> Path:
        """Where a shard lies."""
        return self.folder / shard_name(number, self.facts["format"])

    def rows_of(self, number: int) -> range:
        """The rows of a shard."""
        window = int(self.facts["window"])
        return range(number * window, min((number + 1) * window, int(self.facts["rows"])))

    def set_ranges(self, ranges: Floats) -> None:
        """Write down what int8 is scaled to."""
        self.facts["ranges"] = ranges.tolist()
        self._write()

    def record(self, shard: dict[str, Any]) -> None:
        """A shard is on the disk."""
        self.shards[shard["shard"]] = shard
        with (self.folder / JOURNAL).open("a", encoding="utf-8") as journal:
            journal.write(json.dumps(shard, sort_keys=True) + "\n")
            journal.flush()
            os.fsync(journal.fileno())

    def tidy(self) -> None:
        """Sort the journal, and remove what killed processes left behind."""
        lines = [json.dumps(shard, sort_keys=True) + "\n" for _, shard in sorted(self.shards.items())]
        write_durably("".join(lines), self.folder / JOURNAL)
        for partial in self.folder.glob(f".*{PARTIAL}"):
            partial.unlink()

    def _write(self) -> None:
        write_durably(json.dumps(self.facts, indent=1) + "\n", self.folder / MANIFEST)

    def _finished(self) -> Iterator[dict[str, Any]]:
        """Shards that the journal names and that are there; a line cut short counts for nothing."""
        journal = self.folder / JOURNAL
        for line in journal.read_text(encoding="utf-8").splitlines() if journal.is_file() else ():
            try:
                shard = json.loads(line)
                if self.file(shard["shard"]).stat().st_size == shard["bytes"]:
                    yield shard
            except (ValueError, FileNotFoundError):
                continue


@contextmanager
def begun(folder: Path, facts: dict[str, Any]) -> Iterator[Manifest]:
    """The manifest of a folder for work that `facts` describe: a new one, or that of an earlier beginning of the same.

    Only one process has it.

    Args:
        facts: JSON-serialisable, without `ranges`.

    Raises:
        InputError: the folder holds something else or cannot be written, or another process is at work in it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / LOCK, timeout=0):
            known = read_manifest(folder)
            if known is None and (found := sorted(path.name for path in folder.iterdir() if path.name != LOCK)):
                raise InputError(f"{folder} holds other files ({found[0]}); choose another --output.")
            if known is None or not known.shards:  # nothing to lose: an attempt that came to nothing binds nobody
                known = Manifest(folder, {**facts, "ranges": None})
                known._write()
            _compare(known, facts)
            known.tidy()
            yield known
    except Timeout:
        raise InputError(f"Another process is writing to {folder}; wait for it or choose another --output.") from None
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise InputError(
            f"{folder} cannot be written ({reason}); what is done is kept: mend that and repeat the command."
        ) from error


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest in a folder, None if there is none."""
    file = folder / MANIFEST
    return Manifest(folder, json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else None


def model_fingerprint(folder: Path) -> str:
    """16 hexadecimal digits that change with weights, tokenizer or configuration; reads all of them."""
    digest = hashlib.sha256()
    for file in sorted(path for path in folder.rglob("*") if path.suffix in MODEL_FILES):
        with file.open("rb") as content:
            part = hashlib.file_digest(content, "sha256").hexdigest()
        digest.update(f"{file.relative_to(folder).as_posix()} {part}\n".encode())
    return digest.hexdigest()[:16]


def _compare(known: Manifest, facts: dict[str, Any]) -> None:
    """Refuse to go on with other work than was begun."""
    before = json.loads(json.dumps(known.facts))
    for name, value in json.loads(json.dumps(facts)).items():
        if name != WHERE and before.get(name) != value:
            about = f"{name} {before.get(name)}, not {value}" if name not in ("model", "input") else f"another {name}"
            raise InputError(
                f"{known.folder} was begun with {about}; repeat the command as it was, or choose another --output."
            )
