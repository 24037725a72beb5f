"""Loads a model folder, of this project or another, as a `SentenceTransformer`.

Every command and the Python interface load models here or, for training, in `model/backbone.py`. Both refuse the same
models. Nothing is downloaded, and no code from the folder is run.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from pathlib import Path

import transformers
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import modules as library
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer, WeightedLayerPooling
from transformers import PreTrainedConfig

from diffcse_scale.foundation.errors import InputError
from diffcse_scale.foundation.model_files import (
    ABOUT_FILE,
    MODULES_FILE,
    TRANSFORMER_FILE,
    network_folder,
    read_json,
    read_modules,
    read_settings,
)
from diffcse_scale.model.attention import choose_attention_kernels
from diffcse_scale.model.backbone import refuse_own_code
from diffcse_scale.model.damage import damage_told
from diffcse_scale.model.fits import check_fits, check_vocabulary, positions, trained_length
from diffcse_scale.model.pooling import POOLINGS
from diffcse_scale.model.weights import check_finite, weights_checked
from diffcse_scale.model_folder.layout import check_pooling, model_folder, module_names
from diffcse_scale.model_folder.save import first_and_last

log = logging.getLogger(__name__)

__all__ = ["load_model", "quiet_transformers", "truncate_at"]

# the classes that `modules.json` may name
MODULE_TYPES = sorted(set(library.__all__) - {"Module", "InputModule"})
UNLIMITED = 10**9  # tokens; transformers writes 10**30 if a tokenizer has no limit
# loading options that a folder may set; sentence-transformers ignores the last
LOADING_OPTIONS = {"dtype", "torch_dtype", "attn_implementation", "add_pooling_layer", "trust_remote_code"}


def quiet_transformers() -> None:
    """Turn off transformers' progress bars and its report about weights that are missing in a file.

    Example:
        >>> from transformers.utils import logging
        >>> from diffcse_scale.model_folder.load import quiet_transformers
        >>> quiet_transformers()
        >>> logging.get_verbosity() == logging.ERROR
        True
    """
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def load_model(
    path: str | Path, pooling: str | None = None, device: str | None = None
) -> tuple[SentenceTransformer, str]:
    """Load a model.

    Args:
        path: a run, or a folder written by sentence-transformers (as `export` does) or transformers.
        pooling: a name of `POOLINGS`. None uses the folder's own pooling, or cls if it has none.
        device: device to load it on. None uses the first accelerator or, without one, the CPU.

    Returns:
        The model, and the name of its pooling: one of `POOLINGS`, followed by "pooling", or "its own pooling".

    Raises:
        InputError: the folder does not exist or holds no model, the model cannot be read or reads no text, its length
            leaves no room for words, its vectors keep no number, or the pooling is unknown or missing.

    Example:
        >>> from diffcse_scale.embedded import backbone_path
        >>> from diffcse_scale.model_folder.load import load_model
        >>> model, pooling = load_model(backbone_path(), pooling="mean", device="cpu")
        >>> pooling, model.encode(["A dog runs.", "It rains."]).shape
        ('mean pooling', (2, 128))
    """
    folder = model_folder(path)
    check_pooling(pooling)
    choose_attention_kernels()
    with damage_told(f"The model in {path}", folder):
        _check_files(folder, str(path))
        _check_width(folder, str(path))
        with weights_checked():
            model, pooling = _open(folder, str(path), pooling, device)
    check_finite(model, str(path))
    for transformer in _text_transformers(model):
        check_vocabulary(transformer.tokenizer, str(path))
        check_fits(transformer.auto_model, transformer.tokenizer, str(path), {})
        _limit_to_positions(transformer, str(path))
    with damage_told(f"The model in {path}", folder):
        _check_modules(model, str(path))
    return model, pooling


def truncate_at(model: SentenceTransformer, max_length: int | None) -> None:
    """Set the number of tokens that a loaded model reads of a sentence.

    Args:
        model: the model from `load_model`.
        max_length: number of tokens, including special tokens; None keeps the model's own limit.

    Raises:
        InputError: the model cannot read so many tokens, or special tokens alone fill them.

    Example:
        >>> from diffcse_scale.embedded import backbone_path
        >>> from diffcse_scale.model_folder.load import load_model, truncate_at
        >>> model, _ = load_model(backbone_path(), device="cpu")
        >>> truncate_at(model, 16)
        >>> model.max_seq_length
        16
    """
    if max_length is None:
        return
    for transformer in _text_transformers(model):
        network = transformer.auto_model
        check_fits(network, transformer.tokenizer, network.name_or_path, {"--max-length": max_length})
    model.max_seq_length = max_length


def _text_transformers(model: SentenceTransformer) -> Iterator[Transformer]:
    for module in model.modules():
        if isinstance(module, Transformer) and module.tokenizer is not None:
            yield module


def _check_modules(model: SentenceTransformer, name: str) -> None:
    """Check that the modules fit together: encode a word and compare its width with the folder's files."""
    if getattr(model[0], "tokenizer", None) is None:
        raise InputError(
            f"Model {name} begins with {type(model[0]).__name__}, which reads no text; give a model whose first module "
            f"({MODULES_FILE}) reads text."
        )
    if isinstance(model[0], Transformer):
        try:
            found, said = len(model.encode("a", show_progress_bar=False)), model.get_embedding_dimension()
        except KeyError as error:
            if error.args != ("sentence_embedding",):
                raise
            raise InputError(
                f"Model {name} has no pooling where its modules need one ({MODULES_FILE}); choose one with --pooling, "
                "which encode and evaluate have, or add it there."
            ) from error
        if found != said:
            raise ValueError(f"its modules give {found} numbers, but its files say {said}")


def _limit_to_positions(transformer: Transformer, name: str) -> None:
    """Limit the length to usable positions: by default sentence-transformers counts the whole table, RoBERTa's 514."""
    own, limit = transformer.max_seq_length, positions(transformer.auto_model)
    if own is None:
        own = UNLIMITED
    special = transformer.tokenizer.num_special_tokens_to_add()
    if not isinstance(own, int | float) or not own > special:
        raise InputError(
            f"Model {name} says that it reads {own!r:.80} tokens, which is no number above its {special} special "
            f"tokens; write the right one into {TRANSFORMER_FILE} (max_seq_length) or, if it is not there, into "
            "tokenizer_config.json (model_max_length)."
        )
    if limit is None and own >= UNLIMITED:
        limit = trained_length(transformer.auto_model)
    if limit is not None and own > limit:
        transformer.max_seq_length = limit


def _check_files(folder: Path, name: str) -> None:
    """Refuse a folder that would run code from outside this environment, before anything is loaded."""
    for file in folder.rglob("*.json"):
        if file.name == MODULES_FILE:
            _check_types([module["type"] for module in read_modules(file.parent)], file, name)
        elif file.match("*_config.json") or file.name == "config.json":
            settings = read_json(file)
            if not isinstance(settings, dict):  # a file of another tool, for example of training data
                continue
            refuse_own_code(settings, file.name, name)
            if "structure" in settings:  # a router, which holds further modules
                _check_types(settings["types"].values(), file, name)
            if base := settings.get("base_model_name_or_path"):  # adapters
                base_settings, _ = PreTrainedConfig.get_config_dict(base, local_files_only=True)
                refuse_own_code(base_settings, "config.json", base)
            options = settings.get("model_args", {}) | settings.get("model_kwargs", {})
            if other := sorted(options.keys() - LOADING_OPTIONS):
                raise InputError(
                    f"Model {name} asks for the loading option {other[0]} ({file.name}), which is not allowed; "
                    f"allowed are {', '.join(sorted(LOADING_OPTIONS))}."
                )


def _check_width(folder: Path, name: str) -> None:
    """Refuse a number of dimensions to keep (`truncate_dim`) of which no vector has any."""
    width = read_settings(folder / ABOUT_FILE).get("truncate_dim")
    if width is not None and (type(width) is not int or width < 1):
        raise InputError(
            f"Model {name} keeps the first {width!r:.80} numbers of a vector (truncate_dim in {ABOUT_FILE}); write a "
            "whole number there, at least 1."
        )


def _check_types(types: Iterable[str], file: Path, name: str) -> None:
    for kind in types:
        parts = kind.split(".")
        if parts[0] != "sentence_transformers" or parts[-1] not in MODULE_TYPES:
            raise InputError(
                f"Model {name} has a module of type {kind} ({file.name}), which is not run: it is none of "
                f"sentence-transformers' own {', '.join(MODULE_TYPES)}."
            )


def _open(folder: Path, name: str, pooling: str | None, device: str | None) -> tuple[SentenceTransformer, str]:
    if pooling is None and (folder / MODULES_FILE).is_file():
        return SentenceTransformer(str(folder), device=device, local_files_only=True), "its own pooling"
    if pooling is None:
        log.warning("%s names no pooling (a plain transformers folder): cls is used.", name)
        pooling = "cls"
    return _with_pooling(folder, name, pooling, device), f"{pooling} pooling"


def _with_pooling(folder: Path, name: str, pooling: str, device: str | None) -> SentenceTransformer:
    """The network, prompts and width of a folder, with another pooling. Modules after its own pooling are left out."""
    transformer = Transformer.load(str(network_folder(folder)), local_files_only=True)
    config = transformer.auto_model.config
    modules = [transformer, Pooling(config.hidden_size, POOLINGS[pooling].mode)]
    if POOLINGS[pooling].first_and_last:
        config.output_hidden_states = True
        weights = first_and_last(config.num_hidden_layers)
        modules.insert(1, WeightedLayerPooling(config.hidden_size, config.num_hidden_layers, 0, weights))
    kinds = [kind for kind in module_names(folder)[1:] if kind not in ("Pooling", "WeightedLayerPooling")]
    if kinds:
        log.warning("%s: the modules %s are left out, because another pooling was chosen.", name, ", ".join(kinds))
    about = read_settings(folder / ABOUT_FILE)
    kept = {name: about.get(name) for name in ("prompts", "default_prompt_name", "truncate_dim")}
    return SentenceTransformer(modules=modules, device=device, **kept)
