"""File names in a model folder, and its JSON files. They are in `foundation` because `model/` needs them too."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from diffcse_scale.foundation.errors import InputError, system_reason
from diffcse_scale.foundation.paths import given_path

MODULES_FILE, TRANSFORMER_FILE, CARD = "modules.json", "sentence_bert_config.json", "README.md"
ABOUT_FILE = "config_sentence_transformers.json"
ADAPTER_FILE = "adapter_config.json"


def existing_folder(name: str | Path) -> Path | None:
    """The folder with this name; None if it does not exist.

    Raises:
        InputError: no folder can have this name.
    """
    path = given_path(name)
    return path if path.is_dir() else None


def check_hub_name(name: str) -> None:
    """Raise InputError if a model that is not a folder cannot be on the Hub either, because its name is a path."""
    if os.path.lexists(name):
        raise InputError(f"Model {name} cannot be read: it is not a folder; give the folder of a model.")
    if name.startswith((".", "~", "/")) or name.endswith("/") or name.count("/") > 1:
        raise InputError(f"Model folder {name} does not exist.")


def read_json(file: Path) -> Any:
    """The content of a JSON file.

    Raises:
        InputError: the file cannot be read or is not JSON.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{file} cannot be read as JSON ({_reason(error)}); give an undamaged copy of it.") from error


def read_settings(file: Path) -> dict[str, Any]:
    """The object in a JSON file; an empty one if the file does not exist.

    Raises:
        InputError: as for `read_json`, or the file does not hold an object.
    """
    content = read_json(file) if os.path.lexists(file) else {}
    if not isinstance(content, dict):
        raise InputError(f"{file} holds a {type(content).__name__} instead of settings; give an undamaged copy of it.")
    return content


def other_similarity(about: dict[str, Any]) -> str | None:
    """The similarity that a model's settings (`ABOUT_FILE`) name, unless it is the cosine or there is none."""
    named = about.get("similarity_fn_name")
    return None if named in (None, "cosine") else str(named)


def read_modules(folder: Path) -> list[dict[str, str]]:
    """The modules of a sentence-transformers folder in order, with `type` and `path`; empty without the file.

    Raises:
        InputError: as for `read_json`, or the file is not a list of modules.
    """
    file = folder / MODULES_FILE
    modules = read_json(file) if os.path.lexists(file) else []
    fields = ("type", "path")
    if not isinstance(modules, list) or not all(
        isinstance(module, dict) and all(isinstance(module.get(field), str) for field in fields) for module in modules
    ):
        raise InputError(f"{file} is not a list of modules with type and path; give an undamaged copy of it.")
    return modules


def network_folder(folder: Path) -> Path:
    """Folder of the network in a model folder. Old sentence-transformers folders have it in `0_Transformer`."""
    modules = read_modules(folder)
    within = folder / modules[0]["path"] if modules else folder
    return within if (within / "config.json").is_file() else folder


def damaged_json(folder: Path) -> str | None:
    """The problem with the first unreadable JSON file in a folder; None if all can be read."""
    for file in sorted(folder.rglob("*.json")):
        try:
            read_json(file)
        except InputError as error:
            return str(error).partition(";")[0]
    return None


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "nested too deep"
    if isinstance(error, OSError):
        return system_reason(error)
    return str(error).splitlines()[0]
