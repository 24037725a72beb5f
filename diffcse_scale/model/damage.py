"""What libraries make of a damaged model, in one sentence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError

import torch

from diffcse_scale.foundation.errors import InputError, RunEnded
from diffcse_scale.foundation.model_files import damaged_json

NOT_OF_THE_FILES = (InputError, RunEnded, MemoryError, torch.OutOfMemoryError)
LONGEST = 300  # characters of what a library says


@contextmanager
def damage_told(what: str, folder: Path | None = None, advice: str = "") -> Iterator[None]:
    """Inside, only files of a model are read; whatever a library raises over them becomes an InputError.

    Libraries raise what their parsers do: lookups that fail, assertions, a bare Exception (tokenizers).

    Args:
        what: is read.
        folder: where it lies, if that is a folder.
        advice: what to do.

    Raises:
        InputError: `what` cannot be read, and why.
    """
    try:
        yield
    except NOT_OF_THE_FILES:
        raise
    except Exception as error:
        raise InputError(
            f"{what} cannot be read: {why_unreadable(error, folder)}{advice and f'; {advice}'}."
        ) from error


def why_unreadable(error: Exception, folder: Path | None = None) -> str:
    """The reason that a library gives for not loading a model, as the end of a sentence."""
    if isinstance(error, UnpicklingError):
        return "its .bin file holds Python objects beside weights, which are not unpickled; give it as safetensors"
    if folder is not None and (damage := damaged_json(folder)):
        return damage
    said = (" ".join(str(error).split()) or type(error).__name__)[:LONGEST].rstrip(".")
    if isinstance(error, LookupError | AttributeError | TypeError | AssertionError):
        return f"its files are not what they should be ({type(error).__name__}: {said})"
    return said
