"""A directory that sentence-transformers, transformers and mteb load as it is.

    model.safetensors, config.json, tokenizer files     at the root: what AutoModel and AutoTokenizer read
    modules.json, sentence_bert_config.json, 1_*/, 2_*/  what SentenceTransformer reads besides

The sentence-transformers files are written here and not by the library, in the form that new and old versions
read: the library would write names that versions before 5.4 do not know, and load the weights once more.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from diffcse_scale.errors import InputError
from diffcse_scale.model.lora import has_adapters, save_merged

MODULES_FILE, TRANSFORMER_FILE, CARD = "modules.json", "sentence_bert_config.json", "README.md"
POOLINGS = {"cls": "cls", "mean": "mean", "last": "lasttoken", "first_last_mean": "mean"}
"""Our poolings and the modes of sentence-transformers' Pooling that do them."""
POOLING_FLAGS = {"cls": "cls_token", "mean": "mean_tokens", "lasttoken": "lasttoken"}


def export_sentence_transformer(
    encoder: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pooling: str,
    max_length: int,
    directory: str | Path,
    card: str | None = None,
    state: dict[str, Tensor] | None = None,
    adapter: bool = False,
) -> None:
    """Write the encoder as a directory that `SentenceTransformer` and `AutoModel` load.

    The directory appears whole or not at all. An earlier export in its place is replaced, nothing else is.

    Args:
        encoder: the backbone that is kept; no projection, no discriminator.
        pooling: cls, mean, last or first_last_mean.
        max_length: tokens a sentence that users get unless they say otherwise.
        card: text of README.md, the model card.
        state: the weights, where `encoder` holds only a part of them (ZeRO-3).
        adapter: of an encoder with adapters save these alone, beside the name of their base; else they are merged.

    Raises:
        InputError: `directory` is something else than an earlier export.
    """
    with replaced(directory) as folder:
        if has_adapters(encoder) and not adapter:
            save_merged(encoder, folder, state)
        else:
            encoder.save_pretrained(folder, state_dict=state)
        tokenizer.save_pretrained(folder)
        config = encoder.config
        write_modules(folder, pooling, max_length, config.hidden_size, config.num_hidden_layers)
        if card is not None:
            (folder / CARD).write_text(card, encoding="utf-8")


@contextmanager
def replaced(directory: str | Path) -> Iterator[Path]:
    """A folder to write to, not there yet, which takes the place of `directory` when the block ends without an error.

    Raises:
        InputError: `directory` is something else than an earlier export.
    """
    directory = Path(directory).absolute()
    check_replaceable(directory)
    directory.parent.mkdir(parents=True, exist_ok=True)
    temporary = directory.with_name(f".{directory.name}.{os.getpid()}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        yield temporary
        _replace(directory, temporary)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_replaceable(directory: Path) -> None:
    """Raises:
    InputError: `directory` is something else than an earlier export.
    """
    if directory.exists() and not (directory / MODULES_FILE).is_file() and not _is_empty_folder(directory):
        raise InputError(f"{directory} exists and is no exported model; choose another name.")


def write_modules(folder: Path, pooling: str, max_length: int | None, width: int, layers: int) -> None:
    """Make a transformers folder a sentence-transformers folder: the files beside weights and tokenizer.

    `first_last_mean` is a layer average with weight 1 on the embedding output and on the last layer and 0
    between, followed by the mean over tokens.

    Raises:
        ValueError: unknown pooling.
    """
    if pooling not in POOLINGS:
        raise ValueError(f"pooling must be one of {', '.join(POOLINGS)}, not {pooling!r}")
    transformer: dict[str, Any] = {"max_seq_length": max_length, "do_lower_case": False}
    names = ["Transformer", "Pooling"]
    if pooling == "first_last_mean":
        transformer["config_args"] = {"output_hidden_states": True}
        names.insert(1, "WeightedLayerPooling")
        layer_average = folder / "1_WeightedLayerPooling"
        config = {"word_embedding_dimension": width, "layer_start": 0, "num_hidden_layers": layers}
        _write(layer_average / "config.json", config)
        save_file({"layer_weights": first_and_last(layers)}, layer_average / "model.safetensors")
    modules = [_module(index, name) for index, name in enumerate(names)]
    flags = {f"pooling_mode_{flag}": mode == POOLINGS[pooling] for mode, flag in POOLING_FLAGS.items()}
    _write(folder / modules[-1]["path"] / "config.json", {"word_embedding_dimension": width, **flags})
    _write(folder / TRANSFORMER_FILE, transformer)
    _write(folder / MODULES_FILE, modules)
    libraries = ("sentence-transformers", "transformers", "torch")
    versions = {name.replace("-", "_"): metadata.version(name) for name in libraries}
    about = {"__version__": versions, "prompts": {}, "similarity_fn_name": "cosine"}
    _write(folder / "config_sentence_transformers.json", about)


def _module(index: int, name: str) -> dict[str, Any]:
    path = f"{index}_{name}" if index else ""
    return {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{name}"}


def append_module(folder: Path, name: str, config: dict[str, Any], weights: dict[str, Tensor] | None = None) -> None:
    """Let another module of sentence-transformers follow those of an exported folder.

    Args:
        name: of its class.
        config: the class's own.
    """
    modules = json.loads((folder / MODULES_FILE).read_text(encoding="utf-8"))
    module = _module(len(modules), name)
    _write(folder / module["path"] / "config.json", config)
    if weights is not None:
        save_file(weights, folder / module["path"] / "model.safetensors")
    _write(folder / MODULES_FILE, [*modules, module])


def module_names(folder: Path) -> list[str]:
    """The classes of an exported folder's modules, in order: Transformer, Pooling, ..."""
    modules = json.loads((folder / MODULES_FILE).read_text(encoding="utf-8"))
    return [module["type"].rpartition(".")[2] for module in modules]


def set_max_length(folder: Path, max_length: int) -> None:
    """Change how many tokens of a sentence users of an exported folder get."""
    file = folder / TRANSFORMER_FILE
    settings = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    _write(file, {**settings, "max_seq_length": max_length})


def first_and_last(layers: int) -> Tensor:
    """Weights [layers + 1] of an average over embedding output (0) and all layers: first and last only."""
    weights = torch.zeros(layers + 1)
    weights[0] = weights[-1] = 1.0
    return weights


def _write(file: Path, content: Any) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def _replace(directory: Path, new: Path) -> None:
    """Put `new` in the place of `directory`; nothing can be renamed over a full folder, so it steps aside."""
    if not directory.exists():
        new.rename(directory)
        return
    old = new.with_suffix(".old")
    directory.rename(old)
    new.rename(directory)
    shutil.rmtree(old)
