"""A model folder, of this project or another, as a `SentenceTransformer`. Nothing is downloaded."""

from __future__ import annotations

import logging
from pathlib import Path

import transformers
from safetensors import SafetensorError
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer, WeightedLayerPooling

from diffcse_scale.errors import InputError
from diffcse_scale.export.sentence_transformer import MODULES_FILE, POOLINGS, first_and_last

log = logging.getLogger(__name__)

RUN_FILE = "recipe.yaml"


def quiet_transformers() -> None:
    """No progress bars, and no report about the weights that a network has beyond those of its file."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def model_folder(path: str | Path) -> Path:
    """The folder of a model: `path` itself, or the `model` of the run that `path` is.

    Raises:
        InputError: there is no such folder, no model in it, or the run has not finished.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise InputError(f"Model folder {path} does not exist; none is downloaded.")
    if (folder / RUN_FILE).is_file():
        if not (folder / "model" / MODULES_FILE).is_file():
            raise InputError(f"The run in {path} has no model yet; `diffcse-scale status {path}` tells how far it is.")
        return folder / "model"
    if not (folder / MODULES_FILE).is_file() and not (folder / "config.json").is_file():
        raise InputError(f"{path} holds no model: neither {MODULES_FILE} nor config.json is there.")
    return folder


def run_of(model: str | Path) -> Path | None:
    """The run whose result the model folder is, or None."""
    folder = Path(model).expanduser().absolute()
    for candidate in (folder, folder.parent):
        if (candidate / RUN_FILE).is_file():
            return candidate
    return None


def load_model(path: str | Path, pooling: str | None = None) -> tuple[SentenceTransformer, str]:
    """A model, and how its pooling is to be named.

    Args:
        path: a run, or a folder written by sentence-transformers (`export` does) or by transformers.
        pooling: cls, mean, last or first_last_mean. None for the folder's own, or cls where it has none.

    Raises:
        InputError: no such folder, no model in it, one that cannot be read, or an unknown pooling.
    """
    folder = model_folder(path)
    if pooling not in (None, *POOLINGS):
        raise InputError(f"There is no pooling {pooling!r}; there are {', '.join(POOLINGS)}.")
    try:
        if pooling is None and (folder / MODULES_FILE).is_file():
            return SentenceTransformer(str(folder), local_files_only=True), "its own pooling"
        if pooling is None:
            log.warning("%s names no pooling (a plain transformers folder): cls is used.", path)
            pooling = "cls"
        return _with_pooling(folder, pooling), f"{pooling} pooling"
    except (OSError, ValueError, RuntimeError, KeyError, ImportError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:300].rstrip(".")
        raise InputError(f"The model in {path} cannot be read: {reason}.") from error


def _with_pooling(folder: Path, pooling: str) -> SentenceTransformer:
    """The network of a folder under another pooling; whatever follows its own pooling is left out."""
    transformer = Transformer.load(str(folder), local_files_only=True)
    config = transformer.auto_model.config
    modules = [transformer, Pooling(config.hidden_size, POOLINGS[pooling])]
    if pooling == "first_last_mean":
        config.output_hidden_states = True
        weights = first_and_last(config.num_hidden_layers)
        modules.insert(1, WeightedLayerPooling(config.hidden_size, config.num_hidden_layers, 0, weights))
    return SentenceTransformer(modules=modules)
