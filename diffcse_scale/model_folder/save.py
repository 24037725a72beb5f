"""A directory that sentence-transformers, transformers and mteb load as it is.

    model.safetensors, config.json, tokenizer files     at the root: what AutoModel and AutoTokenizer read
    modules.json, sentence_bert_config.json, 1_*/, 2_*/  what SentenceTransformer reads besides

The sentence-transformers files are written here and not by the library, in the form that new and old versions
read: the library would write names that versions before 5.4 do not know, and load the weights once more.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from diffcse_scale.foundation.durable import save_weights
from diffcse_scale.foundation.model_files import (
    ABOUT_FILE,
    CARD,
    MODULES_FILE,
    TRANSFORMER_FILE,
    network_folder,
    read_modules,
    read_settings,
)
from diffcse_scale.foundation.ownership import Place, check_folder, replaced
from diffcse_scale.foundation.strict_json import to_json
from diffcse_scale.model.lora import has_adapters, save_merged
from diffcse_scale.model.pooling import POOLINGS, pooling_named
from diffcse_scale.model_folder.layout import is_model_file
from diffcse_scale.model_folder.weight_files import save_encoder


def export_sentence_transformer(
    encoder: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pooling: str,
    max_length: int,
    directory: str | Path,
    card: str | None = None,
    state: dict[str, Tensor] | None = None,
    adapter: bool = False,
    overwrite: bool = False,
    beside: Mapping[str, dict[str, Tensor]] | None = None,
    write: Callable[[Path], None] | None = None,
) -> None:
    """Write the encoder as a directory that `SentenceTransformer` and `AutoModel` load.

    The directory appears whole or not at all. What this function wrote there before is replaced, nothing else is.

    Args:
        encoder: the backbone that is kept; no projection, no discriminator.
        tokenizer: that of the encoder.
        pooling: a name of `POOLINGS`.
        max_length: tokens a sentence that users get unless they say otherwise.
        directory: where to write; it may be absent.
        card: text of README.md, the model card.
        state: the weights, where `encoder` holds only a part of them (ZeRO-3).
        adapter: of an encoder with adapters save these alone, beside the name of their base; else they are merged.
        overwrite: replace the files of another model in `directory` too.
        beside: weights of what is not the encoder, by the names of their files.
        write: writes what `save_pretrained` would write of the encoder, in its place.

    Raises:
        InputError: `directory` holds what this function did not write, and `overwrite` is False.

    Example:
        >>> from pathlib import Path
        >>> from sentence_transformers import SentenceTransformer
        >>> from transformers import AutoModel, AutoTokenizer
        >>> from diffcse_scale.embedded import backbone_path
        >>> from diffcse_scale.export import export_sentence_transformer
        >>> encoder = AutoModel.from_pretrained(backbone_path())
        >>> tokenizer = AutoTokenizer.from_pretrained(backbone_path())
        >>> export_sentence_transformer(encoder, tokenizer, "mean", 32, Path("exported"))
        >>> model = SentenceTransformer("exported", device="cpu")
        >>> model.max_seq_length, model.encode(["A dog runs."]).shape
        (32, (1, 128))
    """
    place = check_output(directory, "export_sentence_transformer", overwrite)
    with replaced(place) as folder:
        if write is not None:
            write(folder)
        elif has_adapters(encoder) and not adapter:
            save_merged(encoder, folder, state)
        else:
            save_encoder(encoder, folder, state)
        tokenizer.save_pretrained(folder)
        config = encoder.config
        write_modules(folder, pooling, max_length, config.hidden_size, config.num_hidden_layers)
        for name, weights in (beside or {}).items():
            save_weights(weights, folder / name)
        if card is not None:
            (folder / CARD).write_text(card, encoding="utf-8")


def check_output(
    directory: str | Path,
    command: str,
    overwrite: bool = False,
    sources: Collection[str | Path] = (),
    copied: Collection[str] = (),
) -> Place:
    """See to it that a model may be written to `directory`: see `check_folder`.

    Args:
        copied: files that are written beside those of `FILES`.
    """

    def writes(name: str) -> bool:
        return name in copied or is_model_file(name)

    return check_folder(Path(directory), command, writes, _without_mark, overwrite, sources)


def _without_mark(folder: Path) -> bool:
    """Whether an earlier version exported a model to `folder`: sentence-transformers writes no version of "torch"."""
    about = folder / ABOUT_FILE
    try:
        return "torch" in json.loads(about.read_text(encoding="utf-8"))["__version__"]
    except (OSError, ValueError, KeyError, TypeError):
        return False


def write_modules(folder: Path, pooling: str, max_length: int | None, width: int, layers: int) -> None:
    """Make a transformers folder a sentence-transformers folder: the files beside weights and tokenizer.

    A pooling of first and last layer is a layer average with weight 1 on the embedding output and on the last layer
    and 0 between, followed by that over tokens.

    Raises:
        ValueError: unknown pooling.
    """
    chosen = pooling_named(pooling)
    transformer: dict[str, Any] = {"max_seq_length": max_length, "do_lower_case": False}
    names = ["Transformer", "Pooling"]
    if chosen.first_and_last:
        transformer["config_args"] = {"output_hidden_states": True}
        names.insert(1, "WeightedLayerPooling")
        layer_average = folder / "1_WeightedLayerPooling"
        config = {"word_embedding_dimension": width, "layer_start": 0, "num_hidden_layers": layers}
        _write(layer_average / "config.json", config)
        save_weights({"layer_weights": first_and_last(layers)}, layer_average / "model.safetensors")
    modules = [_module(index, name) for index, name in enumerate(names)]
    flags = {f"pooling_mode_{one.flag}": one.flag == chosen.flag for one in POOLINGS.values()}
    _write(folder / modules[-1]["path"] / "config.json", {"word_embedding_dimension": width, **flags})
    _write(folder / TRANSFORMER_FILE, transformer)
    _write(folder / MODULES_FILE, modules)
    libraries = ("sentence-transformers", "transformers", "torch")
    versions = {name.replace("-", "_"): metadata.version(name) for name in libraries}
    about = {"__version__": versions, "prompts": {}, "similarity_fn_name": "cosine"}
    _write(folder / ABOUT_FILE, about)


def _module(index: int, name: str) -> dict[str, Any]:
    path = f"{index}_{name}" if index else ""
    return {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{name}"}


def append_module(folder: Path, name: str, config: dict[str, Any], weights: dict[str, Tensor] | None = None) -> None:
    """Let another module of sentence-transformers follow those of an exported folder.

    Args:
        name: of its class.
        config: the class's own.
    """
    modules = read_modules(folder)
    module = _module(len(modules), name)
    _write(folder / module["path"] / "config.json", config)
    if weights is not None:
        save_weights(weights, folder / module["path"] / "model.safetensors")
    _write(folder / MODULES_FILE, [*modules, module])


def set_max_length(folder: Path, max_length: int) -> None:
    """Change how many tokens of a sentence users of an exported folder get."""
    file = network_folder(folder) / TRANSFORMER_FILE
    _write(file, {**read_settings(file), "max_seq_length": max_length})


def first_and_last(layers: int) -> Tensor:
    """Weights [layers + 1] of an average over embedding output (0) and all layers: first and last only."""
    weights = torch.zeros(layers + 1)
    weights[0] = weights[-1] = 1.0
    return weights


def _write(file: Path, content: Any) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_text(to_json(content, indent=2) + "\n", encoding="utf-8")
