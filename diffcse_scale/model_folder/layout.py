"""The files of a model folder, and the location of a run's model. Nothing here needs torch."""

from __future__ import annotations

import logging
from fnmatch import fnmatchcase
from pathlib import Path
from typing import get_args

from diffcse_scale.foundation import run_files
from diffcse_scale.foundation.errors import InputError, quoted
from diffcse_scale.foundation.hub_reach import only_cached
from diffcse_scale.foundation.model_files import (
    ABOUT_FILE,
    ADAPTER_FILE,
    CARD,
    MODULES_FILE,
    TRANSFORMER_FILE,
    existing_folder,
    other_similarity,
    read_modules,
    read_settings,
)
from diffcse_scale.foundation.paths import given_path
from diffcse_scale.foundation.run_files import CURVES
from diffcse_scale.recipe import EMBEDDED, Pooling, Recipe

log = logging.getLogger(__name__)

NUMBERED = "model-*-of-*.safetensors"  # the weight files, if there are several
FILES = (
    *("config.json", "generation_config.json", MODULES_FILE, TRANSFORMER_FILE, ABOUT_FILE, CARD, CURVES),
    *("model.safetensors", NUMBERED, "model.safetensors.index.json"),
    *(ADAPTER_FILE, "adapter_model.safetensors"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja"),
    *("vocab.txt", "vocab.json", "merges.txt", "*.model"),
    *("[0-9]*_*/config.json", "[0-9]*_*/model.safetensors", "onnx/model*.onnx", "onnx/model*.onnx_data"),
)
"""Names of the files of a model, as `fnmatch` patterns. An export may write and replace them."""


def model_folder(path: str | Path) -> Path:
    """The folder of a model: `path` itself or, if `path` is a run, its `model` folder.

    Raises:
        InputError: the folder does not exist or holds no model, or the run has no model yet.
    """
    folder = existing_folder(path)
    if folder is None:
        raise InputError(f"Model folder {path} does not exist; models are not downloaded here.")
    if (folder / run_files.RECIPE).is_file():
        if not (folder / run_files.MODEL / MODULES_FILE).is_file():
            raise InputError(_without_model(path, folder))
        return folder / run_files.MODEL
    if not (folder / MODULES_FILE).is_file() and not (folder / "config.json").is_file():
        raise InputError(f"{path} holds no model: neither {MODULES_FILE} nor config.json is there.")
    return folder


def _without_model(path: str | Path, run: Path) -> str:
    """Words for a run whose `model` folder is absent or incomplete."""
    if (run / run_files.RESULT).is_file():
        return f"The run in {path} has finished, but {run / run_files.MODEL} holds no model; restore it."
    return f"The run in {path} has no model yet; `diffcse-scale status {path}` shows how far it is."


def check_models(recipe: Recipe) -> None:
    """Raise InputError if a network of a recipe must come from the Hub, which cannot be reached, and is not cached."""
    needs_generator = recipe.objective.rtd_weight > 0 and recipe.objective.edits is None
    names = (recipe.model.encoder, recipe.model.discriminator, recipe.model.generator if needs_generator else None)
    for name in names:
        if name is not None and name != EMBEDDED:
            only_cached(name)


def run_of(model: str | Path) -> Path | None:
    """The run that a model folder belongs to, or None."""
    folder = given_path(model).absolute()
    candidates = [folder, *([folder.parent] if folder.name == run_files.MODEL else [])]
    return next((run for run in candidates if (run / run_files.RECIPE).is_file()), None)


def is_model_file(name: str) -> bool:
    """Whether a relative name matches one of `FILES`."""
    return any(name.count("/") == pattern.count("/") and fnmatchcase(name, pattern) for pattern in FILES)


def module_names(folder: Path) -> list[str]:
    """The classes of an exported folder's modules, in order: Transformer, Pooling, ..."""
    return [module["type"].rpartition(".")[2] for module in read_modules(folder)]


def tell_of_similarity(path: str | Path) -> None:
    """Warn if a model's own similarity is not the cosine. Callers compare its vectors by cosine.

    Raises:
        InputError: the folder does not exist or holds no model, or its settings cannot be read.
    """
    if measure := other_similarity(read_settings(model_folder(path) / ABOUT_FILE)):
        log.warning("%s: its own similarity is %s (similarity_fn_name), but cosines are computed here.", path, measure)


def check_pooling(name: str | None) -> None:
    """Raise InputError unless there is a pooling with this name, or `name` is None."""
    if name is not None and name not in (known := get_args(Pooling)):
        raise InputError(f"There is no pooling {quoted(name)}; there are {', '.join(known)}.")
