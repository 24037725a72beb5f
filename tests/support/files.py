"""Files that tests write and read whole, and one that stands for more than it holds."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write_files(folder: Path, files: Mapping[str, str | bytes]) -> None:
    """Write files by their names below a folder."""
    for name, content in files.items():
        place = folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content if isinstance(content, bytes) else content.encode())


def contents(folder: str | Path) -> dict[str, bytes]:
    """All files below a folder by their names there."""
    files = sorted(file for file in Path(folder).rglob("*") if file.is_file())
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}


def set_about(model: Path, **settings: Any) -> None:
    """Change settings in the file that sentence-transformers keeps about a model folder."""
    file = model / "config_sentence_transformers.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))


def yaml_bomb(levels: int) -> str:
    """Lists of nine, each of aliases of the one before: 9 ** levels values in a few hundred bytes."""
    names = [f"a{level}" for level in range(levels)]
    lines = [f"{names[0]}: &{names[0]} [{', '.join('x' * 9)}]"]
    lines += [f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]" for a, b in itertools.pairwise(names)]
    return "\n".join(lines)
