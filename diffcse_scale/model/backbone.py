"""Loading pretrained networks and finding one's way in them, whatever their family."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from diffcse_scale.embedded import backbone_path
from diffcse_scale.errors import InputError
from diffcse_scale.recipe import EMBEDDED


def resolve(name: str) -> str:
    """A folder or Hub name that `from_pretrained` understands; 'embedded' is the backbone in the package.

    Raises:
        InputError: `name` looks like a path and is no model folder.
    """
    if name == EMBEDDED:
        return str(backbone_path())
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise InputError(f"Model folder {name} has no config.json; give the folder that save_pretrained wrote.")
        return str(path)
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise InputError(f"Model folder {name} does not exist.")
    return name


_weightless: ContextVar[bool] = ContextVar("weightless", default=False)


@contextmanager
def without_weights() -> Iterator[None]:
    """Inside, networks are built from their configuration alone, on the meta device: shapes without numbers."""
    token = _weightless.set(True)
    try:
        with torch.device("meta"):
            yield
    finally:
        _weightless.reset(token)


def _from_pretrained(factory: Any, name: str, trust_remote_code: bool, **options: object) -> PreTrainedModel:
    try:
        if _weightless.get():
            config = AutoConfig.from_pretrained(resolve(name), trust_remote_code=trust_remote_code)
            return factory.from_config(config, dtype=torch.float32, trust_remote_code=trust_remote_code)
        # float32 weights always: precision is the DeepSpeed configuration's business
        return factory.from_pretrained(
            resolve(name), dtype=torch.float32, trust_remote_code=trust_remote_code, **options
        )
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"Model {name} cannot be loaded: {reason}") from error


def load_backbone(name: str, trust_remote_code: bool = False) -> PreTrainedModel:
    """A transformers encoder in float32, without the pooler that BERT-like models carry and we never use."""
    backbone = _from_pretrained(AutoModel, name, trust_remote_code)
    if getattr(backbone, "pooler", None) is not None:
        backbone.pooler = None
    return backbone


def load_masked_lm(name: str, trust_remote_code: bool = False) -> PreTrainedModel:
    """A transformers masked language model in float32."""
    return _from_pretrained(AutoModelForMaskedLM, name, trust_remote_code)


def load_tokenizer(name: str, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a model.

    Raises:
        InputError: it cannot be loaded.
    """
    try:
        return AutoTokenizer.from_pretrained(resolve(name), trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"Tokenizer of {name} cannot be loaded: {reason}") from error


def first_layer(backbone: PreTrainedModel) -> nn.Module:
    """The first transformer layer: its input is the embedding output, whatever the family calls things."""
    depth = backbone.config.num_hidden_layers
    for module in backbone.modules():
        if isinstance(module, nn.ModuleList) and len(module) == depth:
            return module[0]
    raise InputError(f"{type(backbone).__name__} has no list of {depth} layers, so it cannot serve as a discriminator.")


def check_same_vocabulary(
    first: PreTrainedTokenizerBase, second: PreTrainedTokenizerBase, names: tuple[str, str]
) -> None:
    """Generator and discriminator exchange token ids, so their vocabularies must be equal, not their names.

    Raises:
        InputError: names both models and the first id that means different tokens.
    """
    vocabularies = [{index: token for token, index in tokenizer.get_vocab().items()} for tokenizer in (first, second)]
    if vocabularies[0] == vocabularies[1]:
        return
    ids = sorted(vocabularies[0].keys() | vocabularies[1].keys())
    differing = next(index for index in ids if vocabularies[0].get(index) != vocabularies[1].get(index))
    tokens = [repr(vocabulary.get(differing, "nothing")) for vocabulary in vocabularies]
    raise InputError(
        f"Vocabularies differ between encoder {names[0]} and generator {names[1]}: id {differing} is {tokens[0]} in "
        f"one and {tokens[1]} in the other; choose a generator with the encoder's tokenizer, or train one with "
        "`diffcse-scale pretrain-generator --tokenizer`."
    )


def check_lengths(backbone: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, lengths: dict[str, int]) -> None:
    """Refuse sentences longer than the backbone has positions for.

    Raises:
        InputError: names the recipe's field (a key of `lengths`) and the limit.
    """
    # RoBERTa-like models number positions from pad + 1; their tokenizers know how many are left
    limit = min(getattr(backbone.config, "max_position_embeddings", None) or 10**9, tokenizer.model_max_length)
    for field, length in lengths.items():
        if length > limit:
            raise InputError(f"{field} = {length} is more than the {limit} positions of {backbone.name_or_path}.")
