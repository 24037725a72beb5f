"""JSON that any program can read: it has no NaN and no infinity."""

from __future__ import annotations

import json
import math
from typing import Any


def to_json(value: Any, indent: int | None = None, *, sort_keys: bool = False) -> str:
    """The text of `value`; numbers that are not finite are null, which says that they are undefined."""
    return json.dumps(_defined(value), indent=indent, sort_keys=sort_keys, allow_nan=False)


def _defined(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _defined(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_defined(one) for one in value]
    return value
