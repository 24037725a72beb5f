"""A model folder, of this project or another, as a `SentenceTransformer`.

Every command and the Python interface load models here or, for training, in `model/backbone.py`; the same is refused in
both. Nothing is downloaded, and nothing that the folder brings is run.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import transformers
from safetensors import SafetensorError
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import modules as library
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer, WeightedLayerPooling
from transformers import PreTrainedConfig

from diffcse_scale.foundation.errors import InputError
from diffcse_scale.model.attention import choose_attention_kernels
from diffcse_scale.model.backbone import check_vocabulary, refuse_own_code
from diffcse_scale.model.pooling import POOLINGS
from diffcse_scale.model.weights import check_finite, weights_checked, why_unreadable
from diffcse_scale.model_folder.layout import MODULES_FILE, check_pooling, model_folder
from diffcse_scale.model_folder.save import first_and_last

log = logging.getLogger(__name__)

# the classes that `modules.json` may name
MODULE_TYPES = sorted(set(library.__all__) - {"Module", "InputModule"})
# what a folder may say of how its network is to be loaded; sentence-transformers ignores the last
LOADING_OPTIONS = {"dtype", "torch_dtype", "attn_implementation", "add_pooling_layer", "trust_remote_code"}


def quiet_transformers() -> None:
    """No progress bars, and no report about the weights that a network has beyond those of its file."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def load_model(
    path: str | Path, pooling: str | None = None, device: str | None = None
) -> tuple[SentenceTransformer, str]:
    """A model, and how its pooling is to be named.

    Args:
        path: a run, or a folder written by sentence-transformers (`export` does) or by transformers.
        pooling: a name of `POOLINGS`. None for the folder's own, or cls where it has none.
        device: where it is loaded; None for the first accelerator or, without one, the CPU.

    Raises:
        InputError: no such folder, no model in it, one that cannot be read, or an unknown pooling.
    """
    folder = model_folder(path)
    check_pooling(pooling)
    choose_attention_kernels()
    try:
        _check_files(folder, str(path))
        with weights_checked():
            model, pooling = _open(folder, str(path), pooling, device)
    except (
        OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, ImportError, SafetensorError,
        UnpicklingError,
    ) as error:  # fmt: skip
        raise InputError(f"The model in {path} cannot be read: {why_unreadable(error)}.") from error
    check_finite(model, str(path))
    for module in model.modules():
        if isinstance(module, Transformer) and module.tokenizer is not None:
            check_vocabulary(module.tokenizer, str(path))
    return model, pooling


def _check_files(folder: Path, name: str) -> None:
    """Refuse what would run code that is not this environment's own, before anything is loaded."""
    for file in folder.rglob("*.json"):
        if file.name == MODULES_FILE:
            _check_types([module["type"] for module in _read(file)], file, name)
        elif file.match("*_config.json") or file.name == "config.json":
            settings = _read(file)
            if not isinstance(settings, dict):  # a file of another tool: of training data, say
                continue
            refuse_own_code(settings, file.name, name)
            if "structure" in settings:  # of a router, which holds further modules
                _check_types(settings["types"].values(), file, name)
            if base := settings.get("base_model_name_or_path"):  # of adapters
                base_settings, _ = PreTrainedConfig.get_config_dict(base, local_files_only=True)
                refuse_own_code(base_settings, "config.json", base)
            options = settings.get("model_args", {}) | settings.get("model_kwargs", {})
            if other := sorted(options.keys() - LOADING_OPTIONS):
                raise InputError(
                    f"Model {name} asks for the loading option {other[0]} ({file.name}), which it is not given; "
                    f"allowed there are {', '.join(sorted(LOADING_OPTIONS))}."
                )


def _check_types(types: Iterable[str], file: Path, name: str) -> None:
    for kind in types:
        parts = kind.split(".")
        if parts[0] != "sentence_transformers" or parts[-1] not in MODULE_TYPES:
            raise InputError(
                f"Model {name} has a module of type {kind} ({file.name}), which is not run: it is none of "
                f"sentence-transformers' own {', '.join(MODULE_TYPES)}."
            )


def _read(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def _open(folder: Path, name: str, pooling: str | None, device: str | None) -> tuple[SentenceTransformer, str]:
    if pooling is None and (folder / MODULES_FILE).is_file():
        return SentenceTransformer(str(folder), device=device, local_files_only=True), "its own pooling"
    if pooling is None:
        log.warning("%s names no pooling (a plain transformers folder): cls is used.", name)
        pooling = "cls"
    return _with_pooling(folder, pooling, device), f"{pooling} pooling"


def _with_pooling(folder: Path, pooling: str, device: str | None) -> SentenceTransformer:
    """The network of a folder under another pooling; whatever follows its own pooling is left out."""
    transformer = Transformer.load(str(folder), local_files_only=True)
    config = transformer.auto_model.config
    modules = [transformer, Pooling(config.hidden_size, POOLINGS[pooling].mode)]
    if POOLINGS[pooling].first_and_last:
        config.output_hidden_states = True
        weights = first_and_last(config.num_hidden_layers)
        modules.insert(1, WeightedLayerPooling(config.hidden_size, config.num_hidden_layers, 0, weights))
    return SentenceTransformer(modules=modules, device=device)
