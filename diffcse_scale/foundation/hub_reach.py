"""Checks whether the Hugging Face Hub can be reached, because its clients retry for a minute, printing each attempt."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from diffcse_scale.foundation.errors import InputError, nearest, one_line
from diffcse_scale.foundation.model_files import check_hub_name, existing_folder

PATIENCE = 5.0  # seconds to wait for an answer
REMEMBERED = 60.0  # seconds for which an answer is cached

_answers: dict[str, tuple[float, str | None]] = {}  # by address: the time, and the result of `why_unreachable`


def why_unreachable() -> str | None:
    """Why the Hub (or the mirror in HF_ENDPOINT) cannot be reached; None if it gives any answer."""
    from huggingface_hub import constants  # a slow import

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    asked, reason = _answers.get(constants.ENDPOINT, (-REMEMBERED, None))
    if time.monotonic() - asked >= REMEMBERED:
        reason = _ask(constants.ENDPOINT)
        _answers[constants.ENDPOINT] = time.monotonic(), reason
    return reason


def _ask(address: str) -> str | None:
    from huggingface_hub.utils import get_session

    try:
        get_session().head(address, timeout=PATIENCE)
    except Exception as error:  # from several libraries
        return f"{address}: {one_line(error)}"
    return None


def only_cached(model: str) -> bool:
    """Whether a model can only come from the Hub's cache: it is not a folder, and the Hub cannot be reached.

    Raises:
        InputError: the cache has no copy either, or the name is a path.
    """
    if existing_folder(model):
        return False
    check_hub_name(model)
    if (why := why_unreachable()) is None:
        return False
    if not _is_cached(model):
        meant = nearest(model, (folder.name for folder in Path().glob("*") if folder.is_dir()))
        raise InputError(
            f"Model {model} is not a folder here{meant}, the Hub cannot be reached ({why}), and its cache has no copy; "
            f"{fetching(model)}."
        )
    return True


def _is_cached(model: str) -> bool:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        return isinstance(try_to_load_from_cache(model, "config.json"), str)
    except HFValidationError:  # not a valid name on the Hub
        return False


def fetching(model: str) -> str:
    """What to do without the Hub, in the form that continues a sentence."""
    return (
        f"give the folder of a model, fetch it where there is a network (`hf download {model}`) into the folder that "
        "HF_HOME names, or name a mirror in HF_ENDPOINT"
    )


@contextmanager
def offline() -> Iterator[None]:
    """Inside, the Hub's clients use only their cache."""
    from huggingface_hub import constants

    modules: list[Any] = [constants, *filter(None, [sys.modules.get("datasets.config")])]  # datasets copies the flag
    before = [module.HF_HUB_OFFLINE for module in modules]
    for module in modules:
        module.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        for module, value in zip(modules, before, strict=True):
            module.HF_HUB_OFFLINE = value
