"""The digest of a file. It changes if any byte changes."""

from __future__ import annotations

import hashlib
from pathlib import Path


def sha256_of(file: Path) -> str:
    """SHA-256 of a file in hexadecimal digits. Reads the whole file."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
