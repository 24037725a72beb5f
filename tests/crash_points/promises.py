"""What a program has told its user at a moment, and what of it must still be true after a crash."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from diffcse_scale.foundation.run_files import STATUS

RUN = "run"


def told_checkpoint(work: Path) -> str:
    """The checkpoint that a run's status names."""
    try:
        return json.loads((work / RUN / STATUS).read_text(encoding="utf-8")).get("last_checkpoint") or ""
    except (OSError, ValueError):
        return ""


PROMISES: dict[str, Callable[[Path], str]] = {"checkpoint": told_checkpoint, "nothing": lambda work: ""}
