"""What files hold, as a short text: the same for copies, wherever and whenever they were made."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Iterable
from pathlib import Path

from diffcse_scale.foundation.durable import write_durably
from diffcse_scale.foundation.file_digest import sha256_of
from diffcse_scale.foundation.model_files import existing_folder
from diffcse_scale.text.cache import fingerprint, locked

log = logging.getLogger(__name__)

FOLDER = "digests"  # in the cache
MODEL_FILES = {".json", ".safetensors", ".bin", ".txt", ".model"}
SETTLED = 2.0  # seconds after which a file that is written to again has another time, on every file system
LARGE = 1 << 30  # bytes


def digest(file: Path, cache: Path) -> str:
    """SHA-256 of a file.

    It is kept in the cache under what changes whenever the file is written to or replaced (size, times, inode): the
    content is read once, and again only where that says nothing.
    """
    state = file.stat()
    times = [state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino]
    kept = cache / FOLDER / fingerprint(str(file.resolve()), times)
    if kept.is_file():
        return kept.read_text(encoding="utf-8")
    if state.st_size > LARGE:
        log.info("Reading %s once for its fingerprint.", file)
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        with locked(kept):
            if kept.is_file():  # another rank was here
                return kept.read_text(encoding="utf-8")
            found = sha256_of(file)
            if time.time() - max(state.st_mtime, state.st_ctime) > SETTLED:
                write_durably(found, kept)
            return found
    except OSError:  # a cache that cannot be written saves no time
        return sha256_of(file)


def model_digest(name: str, cache: Path) -> str:
    """Of weights, configuration and tokenizer of a model folder; of a model on the Hub, its name."""
    folder = existing_folder(name)
    if folder is None:
        return name
    files = sorted(path for path in folder.rglob("*") if path.suffix in MODEL_FILES and path.is_file())
    return combined((file.relative_to(folder).as_posix(), digest(file, cache)) for file in files)


def combined(parts: Iterable[tuple[str, str]]) -> str:
    """16 hexadecimal digits that stand for named digests."""
    whole = hashlib.sha256()
    for name, part in parts:
        whole.update(f"{name} {part}\n".encode())
    return whole.hexdigest()[:16]
