"""Digests of the contents of files: equal for copies, wherever and whenever they were made."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

from diffcse_scale.foundation.durable import replacing
from diffcse_scale.foundation.file_digest import sha256_of
from diffcse_scale.foundation.locks import shared_lock
from diffcse_scale.foundation.model_files import existing_folder
from diffcse_scale.text.cache import fingerprint

log = logging.getLogger(__name__)

FOLDER = "digests"  # in the cache
MODEL_FILES = {".json", ".safetensors", ".bin", ".txt", ".model"}
VOCABULARIES = {"vocab.txt", "merges.txt"}  # the files in .txt that loading reads
OTHER_FORMS = {"onnx", "openvino"}  # folders of the same weights for other programs
RESULTS = re.compile(r"(.*_results|trainer_state|training_args|optimizer|scheduler)\.\w+")  # written beside a model
SETTLED = 2.0  # seconds after which another write changes a file's time, on every file system
LARGE = 1 << 30  # bytes
DIGEST = re.compile("[0-9a-f]{64}")


def digest(file: Path, cache: Path) -> str:
    """SHA-256 of a file.

    It is cached under the file's size, times and inode, which change whenever the file is written to or replaced. So
    the content is read once, and read again only if the cache has no digest for this state.
    """
    state = file.stat()
    kept = _kept(file, state, cache)
    if known := _known(kept):
        return known
    if state.st_size > LARGE:
        log.info("Reading %s once for its fingerprint.", file)
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        with shared_lock(kept):
            if known := _known(kept):  # another rank was faster
                return known
            found = sha256_of(file)
            if time.time() - max(state.st_mtime, state.st_ctime) > SETTLED:
                _keep(found, kept)
            return found
    except OSError:  # the cache cannot be written; go without
        return sha256_of(file)


def remember(found: str, file: Path, state: os.stat_result, cache: Path) -> None:
    """Cache the digest of a file that nobody writes to any more, under the path that it will have."""
    with suppress(OSError):
        kept = _kept(file, state, cache)
        kept.parent.mkdir(parents=True, exist_ok=True)
        _keep(found, kept)


def _kept(file: Path, state: os.stat_result, cache: Path) -> Path:
    """Where the cache has the digest of a file in this state."""
    times = [state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino]
    return cache / FOLDER / fingerprint(str(file.resolve()), times)


def _known(kept: Path) -> str | None:
    """The cached digest; None if there is none, or if a crash truncated or emptied its file."""
    try:
        text = kept.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    return text if DIGEST.fullmatch(text) else None


def _keep(found: str, kept: Path) -> None:
    with replacing(kept, fresh=kept.with_name(f"{kept.name}.{uuid4().hex}.tmp")) as file:
        file.write(found)


def model_digest(name: str, cache: Path) -> str:
    """The digest of a model folder's weights, configuration and tokenizer; for a model on the Hub, its name.

    Files beside them do not count: notes, results, the Hub's own folder `.cache`, and the weights in other forms.
    """
    folder = existing_folder(name)
    if folder is None:
        return name
    files = sorted(path for path in folder.rglob("*") if _is_of_model(path.relative_to(folder)) and path.is_file())
    return combined((file.relative_to(folder).as_posix(), digest(file, cache)) for file in files)


def _is_of_model(path: Path) -> bool:
    """Whether a file of a model folder can change what is loaded, by its path in the folder."""
    if path.suffix not in MODEL_FILES or any(part.startswith(".") or part in OTHER_FORMS for part in path.parts):
        return False
    return not RESULTS.fullmatch(path.name) and (path.suffix != ".txt" or path.name in VOCABULARIES)


def combined(parts: Iterable[tuple[str, str]]) -> str:
    """Combine named digests into 16 hexadecimal digits."""
    whole = hashlib.sha256()
    for name, part in parts:
        whole.update(f"{name} {part}\n".encode())
    return whole.hexdigest()[:16]
