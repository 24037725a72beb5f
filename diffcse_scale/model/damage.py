"""Turn the libraries' errors about a damaged model into one sentence."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError, safe_open

from diffcse_scale.foundation.errors import InputError, RunEnded
from diffcse_scale.foundation.model_files import damaged_json

NOT_OF_THE_FILES = (InputError, RunEnded, MemoryError, torch.OutOfMemoryError)
LONGEST = 300  # characters of a library's message


@contextmanager
def damage_told(what: str, folder: Path | None = None, advice: str = "") -> Iterator[None]:
    """A context that only reads files of a model; any error that a library raises about them becomes an InputError.

    Libraries raise whatever their parsers raise: failed lookups, assertions, a bare Exception (tokenizers).

    Args:
        what: what is read, for messages.
        folder: its folder, if it is in a folder.
        advice: what the user should do. By default, for a folder, to give an undamaged copy.

    Raises:
        InputError: `what` cannot be read; the error says why.
    """
    try:
        yield
    except NOT_OF_THE_FILES:
        raise
    except UnpicklingError as error:
        raise InputError(
            f"{what} cannot be read: its .bin file holds Python objects beside weights, which are not unpickled; give "
            "it as safetensors."
        ) from error
    except Exception as error:
        if _raised_by(error, "deepspeed"):  # at ZeRO-3 DeepSpeed partitions the weights while they are read
            raise InputError(
                f"DeepSpeed's configuration cannot be used to load {what}: {_in_words(error)}; change it."
            ) from error
        if package := _not_installed(error):
            raise InputError(f"{what} cannot be read: {package}.") from error
        why = (folder and _damaged_file(folder)) or _in_words(error)
        advice = advice or ("give an undamaged copy of it" if folder else "")
        raise InputError(f"{what} cannot be read: {'; '.join(filter(None, (why, advice)))}.") from error


def _raised_by(error: Exception, package: str) -> bool:
    """Whether the innermost function that raised the error belongs to the package."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and str(trace.tb_frame.f_globals.get("__name__")).split(".")[0] == package


def _not_installed(error: Exception) -> str | None:
    """What to install, if a package is missing; None if the error has another cause.

    Without sentencepiece, transformers tries to read its files with tiktoken, and asks for that.
    """
    if getattr(error.__context__, "name", None) == "tiktoken" and find_spec("sentencepiece") is None:
        return "its vocabulary is a SentencePiece file; pip install sentencepiece"
    return _in_words(error) if isinstance(error, ImportError) else None


def _damaged_file(folder: Path) -> str | None:
    """The first .safetensors or JSON file that cannot be read as such, and what is wrong with it."""
    for file in sorted(folder.rglob("*.safetensors")):
        try:
            with safe_open(file, framework="pt"):
                pass
        except (OSError, SafetensorError) as error:
            return f"{file} holds no weights ({_in_words(error)})"
    return damaged_json(folder)


def _in_words(error: Exception) -> str:
    """The first sentence of a library's message, in a form that can end one of our sentences."""
    first = re.split(r"\. (?=[A-Z])", " ".join(str(error).split()))[0]
    said = first[:LONGEST].rstrip(".") or type(error).__name__
    if isinstance(error, LookupError | AttributeError | TypeError | AssertionError):
        return f"its files are not what they should be ({type(error).__name__}: {said})"
    return said
