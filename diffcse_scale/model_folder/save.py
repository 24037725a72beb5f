"""Writes a directory that sentence-transformers, transformers and mteb load without conversion.

    model.safetensors, config.json, tokenizer files     at the root: read by AutoModel and AutoTokenizer
    modules.json, sentence_bert_config.json, 1_*/, 2_*/  read by SentenceTransformer in addition

The sentence-transformers files are written here and not by the library, in a form that old and new versions read. The
library would write names that versions before 5.4 do not know, and would load the weights once more.
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

    The directory is written atomically. Only files that this function wrote there before are replaced.

    Args:
        encoder: the trained backbone, without projection and discriminator.
        tokenizer: the encoder's tokenizer.
        pooling: a name of `POOLINGS`.
        max_length: default number of tokens per sentence for users of the model.
        directory: where to write; it need not exist.
        card: text of README.md, the model card.
        state: the weights, if `encoder` holds only a part of them (ZeRO-3).
        adapter: save only the adapters of an encoder and the name of their base; otherwise adapters are merged.
        overwrite: also replace the files of another model in `directory`.
        beside: weights besides the encoder's, by file name.
        write: writes the encoder's files instead of `save_pretrained`.

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
    """Check that a model may be written to `directory`; see `check_folder`.

    Args:
        copied: files that are written besides those of `FILES`.
    """

    def writes(name: str) -> bool:
        return name in copied or is_model_file(name)

    return check_folder(Path(directory), command, writes, _without_mark, overwrite, sources)


def _without_mark(folder: Path) -> bool:
    """Whether an earlier version exported a model to `folder`. sentence-transformers itself writes no key "torch"."""
    about = folder / ABOUT_FILE
    try:
        return "torch" in json.loads(about.read_text(encoding="utf-8"))["__version__"]
    except (OSError, ValueError, KeyError, TypeError):
        return False


def write_modules(folder: Path, pooling: str, max_length: int | None, width: int, layers: int) -> None:
    """Turn a transformers folder into a sentence-transformers folder by writing the files that it lacks.

    Pooling of first and last layer is a layer average with weight 1 for the embedding output and the last layer and 0
    for the others, followed by the average over tokens.

    Raises:
        ValueError: the pooling is unknown.
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
    """Append a module of sentence-transformers to those of an exported folder.

    Args:
        name: name of the class.
        config: configuration of the class.
    """
    modules = read_modules(folder)
    module = _module(len(modules), name)
    _write(folder / module["path"] / "config.json", config)
    if weights is not None:
        save_weights(weights, folder / module["path"] / "model.safetensors")
    _write(folder / MODULES_FILE, [*modules, module])


def set_max_length(folder: Path, max_length: int) -> None:
    """Change the default number of tokens per sentence of an exported folder."""
    file = network_folder(folder) / TRANSFORMER_FILE
    _write(file, {**read_settings(file), "max_seq_length": max_length})


def first_and_last(layers: int) -> Tensor:
    """Weights [layers + 1] of an average over embedding output (index 0) and all layers: 1 for the first and last."""
    weights = torch.zeros(layers + 1)
    weights[0] = weights[-1] = 1.0
    return weights


def _write(file: Path, content: Any) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_text(to_json(content, indent=2) + "\n", encoding="utf-8")
