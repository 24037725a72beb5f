"""Reads compressed files to their true end, so that a cut or damage anywhere is an error.

fsspec reads a truncated Zstandard file as if it were only shorter. Python's lzma and bz2 ignore anything that follows
the first stream of a file and is not a stream.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

CHUNK = 1 << 16  # bytes read from the file at once


def _zstd() -> Any:
    import zstandard

    return zstandard.ZstdDecompressor().decompressobj()


# by the ending; gzip is missing because its own reader is strict
STREAMS: dict[str, Callable[[], Any]] = {".xz": lzma.LZMADecompressor, ".bz2": bz2.BZ2Decompressor, ".zst": _zstd}


def open_bytes(name: str) -> IO[bytes]:
    """Open a file that may be compressed (.gz, .xz, .zst, .bz2), to read its content.

    Reading raises the exceptions of the decompressors: OSError, EOFError, lzma.LZMAError, zstandard.ZstdError.
    """
    ending = Path(name.lower()).suffix
    if ending == ".gz":
        return gzip.open(name)  # type: ignore[return-value]
    if ending not in STREAMS:
        return Path(name).open("rb")
    return io.BufferedReader(_Content(name, STREAMS[ending]), CHUNK)


class _Content(io.RawIOBase):
    def __init__(self, name: str, stream: Callable[[], Any]) -> None:
        self._file = io.FileIO(name)
        self._parts = _parts(self._file, stream)
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._rest:
            self._rest = memoryview(next(self._parts, b""))
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


def _parts(file: IO[bytes], stream: Callable[[], Any]) -> Iterator[bytes]:
    """The content, stream after stream; NULs between them are padding."""
    current = stream()
    while chunk := file.read(CHUNK):
        while chunk:
            if current.eof:
                chunk = chunk.lstrip(b"\0")
                if not chunk:
                    break
                current = stream()
            content = current.decompress(chunk)
            chunk = current.unused_data if current.eof else b""
            if content:
                yield content
    if not current.eof:
        raise EOFError("Compressed file ended before the end-of-stream marker was reached")
