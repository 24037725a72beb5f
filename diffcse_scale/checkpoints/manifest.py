"""The files of a complete checkpoint, and the check that they all exist and are undamaged.

checkpoints/
    latest               the name of the newest verified checkpoint; "none" before the first
    step-00000100/       complete: it got this name when everything below was on the disk
        ...              DeepSpeed's files
        training_state.json
        manifest.json    size and SHA-256 of every other file, written last
    step-00000200.partial-1f2e3d4c/     being written or deleted, or left behind by a run that was killed
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from diffcse_scale.checkpoints.shards import FileEntry, file_entry
from diffcse_scale.foundation.durable import write_durably
from diffcse_scale.foundation.errors import InputError, quoted, system_reason
from diffcse_scale.foundation.strict_json import to_json

MANIFEST, STATE, LATEST = "manifest.json", "training_state.json", "latest"
NONE_YET = "none"
NAME = r"step-(\d{8,})"


def checkpoint_name(step: int) -> str:
    """The folder of the checkpoint after `step`."""
    return f"step-{step:08d}"


def checkpoint_steps(folder: Path) -> list[int]:
    """Steps of the checkpoints in `folder` that were complete when written, oldest first."""
    if not folder.is_dir():
        return []
    found = (re.fullmatch(NAME, entry.name) for entry in folder.iterdir())
    return sorted(int(match[1]) for match in found if match)


def write_manifest(folder: Path, entries: Iterable[FileEntry]) -> None:
    """Write `manifest.json` for `entries` and all other files in `folder`."""
    known = {entry.name: entry for entry in entries}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name not in known:
            known[name] = file_entry(path)._replace(name=name)
    files = {entry.name: {"bytes": entry.size, "sha256": entry.sha256} for entry in known.values()}
    write_durably(to_json({"files": files}, indent=1), folder / MANIFEST)


def read_manifest(folder: Path) -> dict[str, dict[str, Any]] | None:
    """`bytes` and `sha256` by file name; None if the manifest is missing or damaged."""
    try:
        files: dict[str, dict[str, Any]] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        return {name: {"bytes": int(facts["bytes"]), "sha256": str(facts["sha256"])} for name, facts in files.items()}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def damage(folder: Path, part: int = 0, parts: int = 1) -> str | None:
    """Describe what is wrong with a checkpoint, or return None.

    Args:
        part: which of `parts` readers this is; each file is checked by exactly one reader.
    """
    files = read_manifest(folder)
    if files is None:
        return f"{MANIFEST} is missing or cut short"
    for number, (name, facts) in enumerate(sorted(files.items())):
        # a rank checks its own shard; files that belong to no single rank are dealt out
        owner = re.search(r"zero_pp_rank_(\d+)_.*optim_states", name)
        if (int(owner[1]) if owner else number) % parts != part:
            continue
        try:
            size = (folder / name).stat().st_size
            if size != facts["bytes"]:
                return f"{name} has {size:,} bytes instead of {facts['bytes']:,}"
            if file_entry(folder / name).sha256 != facts["sha256"]:
                return f"{name} has another content than was written"
        except OSError as error:
            return f"{name} cannot be read ({system_reason(error)})"
    return None


def newest_step(folder: Path) -> int:
    """The step that `latest` names; 0 if there is no checkpoint yet.

    If a run was killed between naming its first checkpoint and updating `latest`, it is the step of that checkpoint.

    Raises:
        InputError: `latest` is missing or unreadable although there are checkpoints; starting again would lose them.
    """
    steps = checkpoint_steps(folder)
    latest = folder / LATEST
    text = latest.read_text(encoding="utf-8").strip() if latest.is_file() else None
    match = re.fullmatch(NAME, text or "")
    if match:
        return int(match[1])
    if not steps:
        return 0
    if text == NONE_YET:  # killed after its first checkpoint got its name, and before `latest` was updated
        return steps[-1]
    problem = "is missing" if text is None else f"says {quoted(text)}, which names none of them"
    raise InputError(
        f"{folder} has checkpoints, but {latest} {problem}; to continue from the newest write "
        f"{checkpoint_name(steps[-1])} into it."
    )


def read_state(folder: Path) -> dict[str, Any]:
    """The training state of a complete checkpoint."""
    state: dict[str, Any] = json.loads((folder / STATE).read_text(encoding="utf-8"))
    return state
