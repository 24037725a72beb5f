"""Finds files that are at the root of the repository, but inside the package once it is installed."""

from __future__ import annotations

from pathlib import Path


def shipped(name: str) -> Path:
    """Path of `recipes`, `ds_configs` or `train.py`."""
    package = Path(__file__).parents[1]
    installed = package / name
    return installed if installed.exists() else package.parent / name
