"""A data set of the Hugging Face Hub; whether it is there is known in seconds, with and without a network."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import datasets
import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

PATIENCE = 5.0  # seconds for the first answer; the clients of libraries try again and again


def load(entry: str) -> datasets.Dataset:
    """The rows of `name`, `name:split` or `name:config:split`.

    The last copy is taken where the Hub cannot be reached.

    Raises:
        Exception: whatever the Hub's client and `datasets` raise.
    """
    name, *rest = entry.split(":")
    split = rest[-1] if rest else "train"
    config = rest[0] if len(rest) == 2 else None
    try:
        huggingface_hub.HfApi().dataset_info(name, timeout=PATIENCE)
    except RepositoryNotFoundError:
        raise ValueError("the Hub has no data set of this name, or does not show it without a login") from None
    except HfHubHTTPError:
        pass  # an answer: of what is wrong `datasets` says more
    except Exception as unreachable:  # of several libraries
        with _offline():
            try:
                return datasets.load_dataset(name, config, split=split)
            except Exception:
                reason = str(unreachable).strip() or type(unreachable).__name__
                raise ConnectionError(f"the Hub cannot be reached, and no copy is in its cache ({reason})") from None
    return datasets.load_dataset(name, config, split=split)


@contextmanager
def _offline() -> Iterator[None]:
    """Inside, only what was downloaded before is looked for."""
    before = datasets.config.HF_HUB_OFFLINE, huggingface_hub.constants.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = huggingface_hub.constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE, huggingface_hub.constants.HF_HUB_OFFLINE = before
