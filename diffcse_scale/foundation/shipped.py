"""Files at the root of the repository, where people look for them, that are inside the package once it is installed."""

from __future__ import annotations

from pathlib import Path


def shipped(name: str) -> Path:
    """Where `recipes`, `ds_configs` or `train.py` is."""
    package = Path(__file__).parents[1]
    installed = package / name
    return installed if installed.exists() else package.parent / name
