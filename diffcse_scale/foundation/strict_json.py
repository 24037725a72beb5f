"""Writes JSON that any program can read, without NaN and infinity."""

from __future__ import annotations

import json
import math
from typing import Any


def to_json(value: Any, indent: int | None = None, *, sort_keys: bool = False) -> str:
    """JSON text of `value`. Numbers that are not finite become null, which means undefined."""
    return json.dumps(_defined(value), indent=indent, sort_keys=sort_keys, allow_nan=False)


def _defined(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _defined(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_defined(one) for one in value]
    return value
