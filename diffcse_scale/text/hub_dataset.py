"""Loads datasets of the Hugging Face Hub, and finds out in seconds if that is possible, also without a network."""

from __future__ import annotations

import datasets

from diffcse_scale.foundation.hub_reach import offline, why_unreachable


def load(entry: str) -> datasets.Dataset:
    """The rows of `name`, `name:split` or `name:config:split`.

    Raises:
        Exception: as `load_split`.
    """
    name, *rest = entry.split(":")
    return load_split(name, rest[-1] if rest else "train", rest[0] if len(rest) == 2 else None)


def load_split(name: str, split: str, config: str | None = None, revision: str | None = None) -> datasets.Dataset:
    """The rows of one split of a dataset; from the last cached copy if the Hub cannot be reached.

    Raises:
        Exception: whatever `datasets` raises.
    """
    why = why_unreachable()
    if why is None:
        return datasets.load_dataset(name, config, split=split, revision=revision)
    with offline():
        try:
            return datasets.load_dataset(name, config, split=split, revision=revision)
        except Exception:
            raise ConnectionError(f"the Hub cannot be reached, and no copy is in its cache ({why})") from None
