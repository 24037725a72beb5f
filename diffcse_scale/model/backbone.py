"""Loading pretrained networks and finding one's way in them, whatever their family."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TokenizersBackend,
)
from transformers.models.auto.tokenization_auto import get_tokenizer_config

from diffcse_scale.embedded import backbone_path
from diffcse_scale.foundation.errors import InputError
from diffcse_scale.foundation.paths import given_path
from diffcse_scale.model.pooling import POOLINGS
from diffcse_scale.model.weights import check_finite, weights_checked, why_unreadable, without_pooler
from diffcse_scale.recipe import EMBEDDED, ModelRecipe
from diffcse_scale.text.tokenizers import Tokenizers


def resolve(name: str) -> str:
    """A folder or Hub name that `from_pretrained` understands; 'embedded' is the backbone in the package.

    Raises:
        InputError: `name` looks like a path and is no model folder.
    """
    if name == EMBEDDED:
        return str(backbone_path())
    path = given_path(name)
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


def load_config(name: str, trust_remote_code: bool = False) -> PreTrainedConfig:
    """The configuration of a model that reads tokens and nothing else.

    Raises:
        InputError: it cannot be loaded, asks for code of its own, or is that of another kind of model.
    """
    with _mistakes_named(f"Model {name}"):
        if not trust_remote_code:
            refuse_own_code(PreTrainedConfig.get_config_dict(resolve(name))[0], "config.json", name)
        config = AutoConfig.from_pretrained(resolve(name), trust_remote_code=trust_remote_code)
    kind = "an encoder-decoder" if config.is_encoder_decoder else "not a model of text alone"
    if config.is_encoder_decoder or config.get_text_config() is not config or not hasattr(config, "hidden_size"):
        raise InputError(
            f"Model {name} ({config.model_type}) is {kind}, which has no one network from tokens to token vectors; "
            "choose an encoder such as BERT or a decoder-only model such as Qwen3."
        )
    return config


def _from_pretrained(factory: Any, name: str, trust_remote_code: bool, **options: object) -> PreTrainedModel:
    """`factory.from_pretrained`, in float32 unless `options` say otherwise: precision is DeepSpeed's business."""
    options = {"dtype": torch.float32, **options}
    if "config" not in options:
        options["config"] = load_config(name, trust_remote_code)
    if _weightless.get():
        config, dtype = options["config"], options["dtype"]
        return factory.from_config(config, dtype=dtype, trust_remote_code=trust_remote_code)
    with _mistakes_named(f"Model {name}"), weights_checked():
        model = factory.from_pretrained(resolve(name), trust_remote_code=trust_remote_code, **options)
    if model.main_input_name != "input_ids":
        raise InputError(f"Model {name} ({model.config.model_type}) reads {model.main_input_name}, not tokens.")
    check_finite(model, name)
    return model


@contextmanager
def _mistakes_named(what: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError, UnpicklingError) as error:
        raise InputError(f"{what} cannot be loaded: {why_unreadable(error)}.") from error


def refuse_own_code(settings: Mapping[str, Any], file: str, name: str) -> None:
    """Refuse a configuration whose model brings its own Python code.

    transformers would ignore the code where it has a family of that name: another network than was meant.

    Raises:
        InputError: there is such code.
    """
    if "auto_map" in settings:
        raise InputError(
            f"Model {name} brings code of its own (auto_map in {file}), which is not run; choose a model of a family "
            "that transformers has, or train it with model.trust_remote_code=true."
        )


def load_backbone(name: str, trust_remote_code: bool = False, **options: object) -> PreTrainedModel:
    """A transformers encoder in float32, without the pooler that BERT-like models carry and we never use.

    options: for `from_pretrained`, such as a `config` or `dtype` of one's own.
    """
    return without_pooler(_from_pretrained(AutoModel, name, trust_remote_code, **options))


def load_masked_lm(name: str, trust_remote_code: bool = False) -> PreTrainedModel:
    """A transformers masked language model in float32."""
    return _from_pretrained(AutoModelForMaskedLM, name, trust_remote_code)


def load_tokenizer(name: str, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a model, with a padding token.

    A tokenizer that comes without one, as many decoders' do, pads with its end token: attention masks hide it from
    us, and sentence-transformers could not batch sentences with an exported tokenizer that has none.

    Raises:
        InputError: it cannot be loaded, has no vocabulary, or there is nothing to pad with.
    """
    with _mistakes_named(f"Tokenizer of {name}"):
        if not trust_remote_code:
            refuse_own_code(get_tokenizer_config(resolve(name)), "tokenizer_config.json", name)
        tokenizer = AutoTokenizer.from_pretrained(resolve(name), trust_remote_code=trust_remote_code)
    check_vocabulary(tokenizer, name)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.sep_token or tokenizer.unk_token
    if tokenizer.pad_token is None:
        raise InputError(f"Tokenizer of {name} has no special token to pad with; give it a pad_token.")
    return tokenizer


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Refuse a tokenizer without its files: for some families transformers makes one that knows no word.

    Raises:
        InputError: it knows special tokens only.
    """
    if not tokenizer.get_vocab().keys() - tokenizer.get_added_vocab().keys() - set(tokenizer.all_special_tokens):
        files = ", ".join(sorted(set(tokenizer.vocab_files_names.values())))
        raise InputError(f"Tokenizer of {name} has no vocabulary; add the model's own tokenizer files ({files}).")


def load_encoder_tokenizer(model: ModelRecipe) -> PreTrainedTokenizerBase:
    """The encoder's tokenizer; where the last token is the sentence embedding, that token is always the end token.

    Otherwise the embedding would be that of whatever the sentence ends with. Tokenizers of base decoders add no end
    token by themselves; the exported one does, so that both libraries give the vectors that were trained.

    Raises:
        InputError: as `load_tokenizer`, or an end token is needed and there is none.
    """
    tokenizer = load_tokenizer(model.encoder, model.trust_remote_code)
    if POOLINGS[model.pooling].token != "last":
        return tokenizer
    ends = {tokenizer.eos_token_id, tokenizer.sep_token_id} - {None}
    ids = tokenizer("a")["input_ids"]
    if ids[-1] in ends:
        return tokenizer
    if tokenizer.eos_token_id is not None and isinstance(tokenizer, TokenizersBackend):
        tokenizer.add_bos_token = ids[0] == tokenizer.bos_token_id
        tokenizer.add_eos_token = True
        if tokenizer("a")["input_ids"] == [*ids, tokenizer.eos_token_id]:
            return tokenizer
    raise InputError(
        f"Tokenizer of {model.encoder} cannot end a sentence with an end token, which model.pooling {model.pooling} "
        "takes the embedding from; use model.pooling mean."
    )


def load_tokenizers(model: ModelRecipe) -> Tokenizers:
    """The tokenizers of a recipe's networks.

    Raises:
        InputError: one cannot be loaded.
    """
    encoder = load_encoder_tokenizer(model)
    if model.discriminator is None:
        return Tokenizers.shared(encoder)
    return Tokenizers(encoder, load_tokenizer(model.discriminator, model.trust_remote_code))


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
        f"Vocabularies differ between {names[0]} and generator {names[1]}: id {differing} is {tokens[0]} in "
        f"one and {tokens[1]} in the other; choose a generator with the same tokenizer, or train one with "
        "`diffcse-scale pretrain-generator --tokenizer`."
    )


def check_lengths(backbone: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, lengths: dict[str, int]) -> None:
    """Refuse sentences longer than the backbone has positions for.

    Raises:
        InputError: names the recipe's field (a key of `lengths`) and the limit.
    """
    limit = min(_positions(backbone), tokenizer.model_max_length)
    for field, length in lengths.items():
        if length > limit:
            raise InputError(f"{field} = {length} is more than the {limit} positions of {backbone.name_or_path}.")


def _positions(backbone: PreTrainedModel) -> int:
    """How many tokens the backbone has positions for; as good as all where its configuration names no number."""
    limit = getattr(backbone.config, "max_position_embeddings", None) or 10**9
    for name, module in backbone.named_modules():
        # RoBERTa-like models number positions from pad + 1 and say so with a padding index among the positions
        if isinstance(module, nn.Embedding) and "position" in name and module.padding_idx is not None:
            limit = min(limit, module.num_embeddings - module.padding_idx - 1)
    return limit


def checkpoint_activations(backbone: PreTrainedModel) -> None:
    """Recompute the backbone's activations in backward.

    Raises:
        InputError: transformers cannot do that for this family.
    """
    if not backbone.supports_gradient_checkpointing:
        raise InputError(
            f"{type(backbone).__name__} cannot recompute activations; set model.gradient_checkpointing to false."
        )
    # the reentrant kind fails under ZeRO-2 and 3 when an encoder is called more than once a step
    backbone.gradient_checkpointing_enable({"use_reentrant": False})
