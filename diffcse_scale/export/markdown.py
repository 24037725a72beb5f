"""Names that people give, as Markdown that shows them and does nothing else."""

from __future__ import annotations

import re
from typing import Any

SIGNS = re.compile(r"[\\`*<>\[\]|&~]|(?<!\w)_|_(?!\w)")


def plain(value: Any) -> Any:
    """A text on one line, its Markdown signs escaped; of lists and dicts all texts; other values as they are."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return SIGNS.sub(r"\\\g<0>", " ".join(value.split())) if isinstance(value, str) else value


def fence(text: str) -> str:
    """Backticks enough to enclose a block of code."""
    return "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
