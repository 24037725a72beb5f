"""Copies remote files once into the cache (hf://, https://, s3://, gs://, any file system of fsspec).

The rest of the program sees local files. A copy is at `CACHE/remote/KEY/NAME`. KEY depends on the address and on what
the file system reports about the content. NAME keeps the endings, which determine the format.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit
from uuid import uuid4

import fsspec

from diffcse_scale.foundation.durable import replacing
from diffcse_scale.foundation.errors import InputError, one_line
from diffcse_scale.foundation.strict_json import to_json
from diffcse_scale.text.cache import fingerprint
from diffcse_scale.text.prepared import Damaged, check_contents, prepared

log = logging.getLogger(__name__)

REMOTE = "remote"
ORIGIN = ".address"  # a file beside each copy, with its address
EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}
# the keys of a file's description that change when its content does
STATE = (
    *("size", "ETag", "etag", "LastModified", "last_modified", "Last-Modified", "mtime", "created", "generation"),
    *("md5Hash", "blob_id", "xet_hash", "Content-MD5", "Digest"),
)


def is_remote(entry: str | Path) -> bool:
    """Whether an entry is an address and not a path."""
    return "://" in str(entry)


def copy_files(address: str, cache: Path, check: Callable[[str], object] = str) -> list[str]:
    """Local copies of the file that an address names, or of the files that a glob names, ordered by name.

    Without a network, the copies of the last time are used.

    Args:
        address: an address of any file system that fsspec knows.
        cache: the folder for copies.
        check: called with every file's address before anything is copied.

    Raises:
        InputError: no such file, an empty glob, a folder, no network, or a package that is not installed.
    """

    def find(system: Any, path: str) -> list[str]:
        if not _is_glob(system, path):
            if system.info(path)["type"] == "directory":
                raise InputError(f"{address} is a folder; name its files, for example {address.rstrip('/')}/*.txt.")
            return [path]
        matches = system.glob(path, detail=True)
        return sorted(name for name, state in matches.items() if state["type"] != "directory")

    return [str(copy) for copy in _copies(address, cache, find, check).values()]


def copy_folder(address: str, cache: Path) -> Path:
    """A local copy of a remote folder's .tsv files at all depths, or of the single file that the address names.

    Raises:
        InputError: as `copy_files`, or there is no .tsv file in the folder.
    """

    def find(system: Any, path: str) -> list[str]:
        # a web server's folder looks like a file, so the ending decides
        if PurePosixPath(urlsplit(path).path).suffix and system.info(path)["type"] == "file":
            return [path]
        tables = (name for name in system.find(path) if name.endswith(".tsv"))
        return sorted(name for name in tables if ".." not in PurePosixPath(name).parts)

    copies = _copies(address, cache, find)
    if list(copies) == [""]:
        return copies[""]

    def link(fresh: Path) -> None:
        for name, copy in copies.items():
            (fresh / name).parent.mkdir(parents=True, exist_ok=True)
            (fresh / name).symlink_to(copy.resolve())

    def read(folder: Path) -> Path:
        if not all((folder / name).exists() for name in copies):
            raise ValueError("a link leads to no file")
        return folder

    folder = cache / REMOTE / fingerprint(address, [str(copy.parent.name) for copy in copies.values()])
    return prepared(folder, cache, read, link)


def origin(name: str) -> str:
    """The address that a copy was made from; the name itself for any other file."""
    note = Path(name).parent / ORIGIN
    return note.read_text(encoding="utf-8") if note.parent.parent.name == REMOTE and note.is_file() else name


def identity(name: str) -> list[Any] | None:
    """An identity of a copy's remote content, independent of the cache's place; None for a file that is no copy."""
    return None if origin(name) == name else [origin(name), Path(name).parent.name]


def _copies(
    address: str, cache: Path, find: Callable[[Any, str], list[str]], check: Callable[[str], object] = str
) -> dict[str, Path]:
    """Copies of the files that `find` returns, by their path below the address ('' is the address itself)."""
    folder = cache / REMOTE
    listing = folder / f"{fingerprint(address)}.json"
    try:
        system, path = fsspec.url_to_fs(address)
        files = find(system, path)
        addresses = {name: system.unstrip_protocol(name) for name in files}
        for name in addresses.values():
            check(_without_query(name))
        copies = {_below(path, name): _copy(system, name, addresses[name], cache) for name in files}
    except InputError:
        raise
    except Exception as error:  # the file systems raise exceptions of many libraries
        copies = _last_copies(listing, cache, error)
        if not copies:
            raise InputError(_reason(address, error)) from None
        log.warning("%s cannot be reached; its copy in %s is used.", address, folder)
        return copies
    if not copies:
        raise InputError(f"{address}: no file matches.")
    names = to_json({name: str(copy.relative_to(folder)) for name, copy in copies.items()})
    # uuid, because hosts may share the cache and have equal PIDs; the listing is only needed without a network
    with suppress(OSError):
        if not (listing.is_file() and listing.read_bytes() == names.encode()):
            with replacing(listing, fresh=listing.with_suffix(f".{uuid4().hex}")) as file:
                file.write(names)
    return copies


def _copy(system: Any, path: str, address: str, cache: Path) -> Path:
    """The local copy of one file. One process copies it; other ranks and programs that need it wait."""
    state = system.info(path)
    known = {key: str(state[key]) for key in STATE if state.get(key) is not None}
    name = unquote(PurePosixPath(_without_query(path)).name) or "file"
    place = cache / REMOTE / fingerprint(address, known)

    def copy(fresh: Path) -> None:
        fresh.mkdir()
        log.info("Copying %s to %s.", address, place)
        system.get_file(path, str(fresh / name))
        (fresh / ORIGIN).write_text(address, encoding="utf-8")

    def read(folder: Path) -> Path:
        if not (folder / name).is_file():
            raise ValueError(f"{name} is missing")
        return folder / name

    return prepared(place, cache, read, copy)


def _is_glob(system: Any, path: str) -> bool:
    """Whether a path is a glob; in a web address a question mark is not a wildcard, but begins the query."""
    return any(sign in path for sign in ("*[" if "http" in system.protocol else "*[?"))


def _without_query(path: str) -> str:
    return path.partition("?")[0] if path.startswith("http") else path


def _below(folder: str, path: str) -> str:
    return "" if path == folder else path.removeprefix(folder.rstrip("/")).lstrip("/")


def _last_copies(listing: Path, cache: Path, error: Exception) -> dict[str, Path]:
    """The copies of the last time, if they are intact and `error` does not say that the file is gone."""
    # fsspec's web client says "not found" for an unreachable server too
    gone = isinstance(error, FileNotFoundError) and not isinstance(error.__cause__, OSError)
    if gone or isinstance(error, PermissionError) or not listing.is_file():
        return {}
    try:
        copies = {name: listing.parent / copy for name, copy in json.loads(listing.read_text(encoding="utf-8")).items()}
        for copy in copies.values():
            check_contents(copy.parent, cache)
    except (ValueError, AttributeError, Damaged) as damage:
        log.error("%s is damaged (%s).", listing, damage)
        return {}
    return copies if all(copy.exists() for copy in copies.values()) else {}


def _reason(address: str, error: Exception) -> str:
    """Why an address cannot be read, in one sentence."""
    scheme = address.partition("://")[0]
    if isinstance(error, ImportError) and scheme in EXTRAS:
        return f"{address} needs a package: pip install 'diffcse-scale[{EXTRAS[scheme]}]'."
    if isinstance(error, FileNotFoundError) and not isinstance(error.__cause__, OSError):
        return f"{address}: no such file."
    cause = error.__cause__ or error
    text = one_line(cause).rstrip(".")
    return f"{address} cannot be read: {text}."
