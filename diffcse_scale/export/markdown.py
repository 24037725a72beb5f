"""Escapes user-given names so that Markdown shows them literally."""

from __future__ import annotations

import re
from typing import Any

SIGNS = re.compile(r"[\\`*<>\[\]|&~]|(?<!\w)_|_(?!\w)")


def plain(value: Any) -> Any:
    """Put a text on one line and escape its Markdown characters, also inside lists and dicts. Keep other values."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return SIGNS.sub(r"\\\g<0>", " ".join(value.split())) if isinstance(value, str) else value


def fence(text: str) -> str:
    """Enough backticks to enclose a block of code."""
    return "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
