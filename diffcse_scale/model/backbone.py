"""Load pretrained networks and tokenizers, and find layers in them, for any model family."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import nn
from transformers import (
    MODEL_FOR_MASKED_LM_MAPPING,
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
from diffcse_scale.foundation.hub_reach import fetching, offline, only_cached
from diffcse_scale.foundation.model_files import ADAPTER_FILE, check_hub_name, existing_folder, network_folder
from diffcse_scale.model.damage import damage_told
from diffcse_scale.model.fits import check_vocabulary
from diffcse_scale.model.pooling import POOLINGS
from diffcse_scale.model.weights import check_finite, weights_checked, without_pooler
from diffcse_scale.recipe import EMBEDDED, ModelRecipe
from diffcse_scale.text.tokenizers import Tokenizers

CPU = torch.device("cpu")


def resolve(name: str) -> str:
    """A folder or Hub name that `from_pretrained` understands; 'embedded' is the backbone in this package.

    Raises:
        InputError: `name` looks like a path but is not a model folder.
    """
    if name == EMBEDDED:
        return str(backbone_path())
    if folder := existing_folder(name):
        network = network_folder(folder)
        if (network / ADAPTER_FILE).is_file():
            raise InputError(
                f"Model folder {name} holds adapters ({ADAPTER_FILE}), not a complete network; give their base, or a "
                "folder with the merged weights."
            )
        if not (network / "config.json").is_file():
            raise InputError(f"Model folder {name} has no config.json; give the folder that save_pretrained wrote.")
        return str(network)
    check_hub_name(name)
    return name


@contextmanager
def reading(what: str, name: str) -> Iterator[None]:
    """A context for reading files of the model `name`, which may be on the Hub; messages call it `what`.

    Raises:
        InputError: as in `damage_told` and `only_cached`.
    """
    if name == EMBEDDED or not only_cached(name):
        with damage_told(what, existing_folder(name)):
            yield
        return
    with offline(), damage_told(what, advice=fetching(name)):
        yield


_weightless: ContextVar[bool] = ContextVar("weightless", default=False)


@contextmanager
def without_weights() -> Iterator[None]:
    """A context in which networks are built from their configuration alone, on the meta device, without weights."""
    token = _weightless.set(True)
    try:
        with torch.device("meta"):
            yield
    finally:
        _weightless.reset(token)


def load_config(name: str, trust_remote_code: bool = False) -> PreTrainedConfig:
    """The configuration of a model that reads only tokens.

    Raises:
        InputError: it cannot be loaded, needs code of its own, belongs to another kind of model, or makes an encoder
            a decoder.
    """
    with reading(f"Model {name}", name):
        if not trust_remote_code:
            refuse_own_code(PreTrainedConfig.get_config_dict(resolve(name))[0], "config.json", name)
        config = AutoConfig.from_pretrained(resolve(name), trust_remote_code=trust_remote_code)
    kind = "an encoder-decoder" if config.is_encoder_decoder else "not a model of text alone"
    if config.is_encoder_decoder or config.get_text_config() is not config or not hasattr(config, "hidden_size"):
        raise InputError(
            f"Model {name} ({config.model_type}) is {kind}, which has no single network from tokens to token vectors; "
            "choose an encoder such as BERT or a decoder-only model such as Qwen3."
        )
    if getattr(config, "is_decoder", False) and type(config) in MODEL_FOR_MASKED_LM_MAPPING:
        raise InputError(
            f"Model {name} is an encoder ({config.model_type}) with is_decoder in config.json, so its tokens see no "
            "later ones; set is_decoder to false there."
        )
    config.return_dict = True  # outputs are read by name
    return config


def _from_pretrained(
    factory: Any, name: str, trust_remote_code: bool, device: torch.device, **options: object
) -> PreTrainedModel:
    """`factory.from_pretrained`, in float32 unless `options` say otherwise, because DeepSpeed sets the precision."""
    options = {"dtype": torch.float32, **options}
    if device != CPU:  # under ZeRO-3 transformers refuses any device map
        options["device_map"] = {"": device}
    if "config" not in options:
        options["config"] = load_config(name, trust_remote_code)
    if _weightless.get():
        config, dtype = options["config"], options["dtype"]
        return factory.from_config(config, dtype=dtype, trust_remote_code=trust_remote_code)
    with reading(f"Model {name}", name), weights_checked():
        model = factory.from_pretrained(resolve(name), trust_remote_code=trust_remote_code, **options)
    if model.main_input_name != "input_ids":
        raise InputError(f"Model {name} ({model.config.model_type}) reads {model.main_input_name}, not tokens.")
    check_finite(model, name)
    return model


def refuse_own_code(settings: Mapping[str, Any], file: str, name: str) -> None:
    """Refuse the configuration of a model that brings its own Python code.

    If transformers has a family with this name, it would ignore the code and build a different network than intended.

    Raises:
        InputError: the model brings code.
    """
    if "auto_map" in settings:
        raise InputError(
            f"Model {name} brings code of its own (auto_map in {file}), which is not run; choose a model of a family "
            "that transformers has, or train it with model.trust_remote_code=true."
        )


def load_backbone(
    name: str, trust_remote_code: bool = False, device: torch.device = CPU, **options: object
) -> PreTrainedModel:
    """A transformers encoder in float32 on `device`, without the pooler of BERT-like models, which is never used here.

    options: for `from_pretrained`, such as another `config` or `dtype`.
    """
    return without_pooler(_from_pretrained(AutoModel, name, trust_remote_code, device, **options))


def load_masked_lm(name: str, trust_remote_code: bool = False, device: torch.device = CPU) -> PreTrainedModel:
    """A transformers masked language model in float32 on `device`."""
    return _from_pretrained(AutoModelForMaskedLM, name, trust_remote_code, device)


def load_tokenizer(name: str, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a model, with a padding token.

    A tokenizer without one, as many decoders have, pads with its end token. Attention masks hide padding from the
    network. Without a padding token, sentence-transformers could not batch sentences with the exported tokenizer.

    Raises:
        InputError: it cannot be loaded, has no vocabulary, or has no token to pad with.
    """
    with reading(f"Tokenizer of {name}", name):
        if not trust_remote_code:
            refuse_own_code(get_tokenizer_config(resolve(name)), "tokenizer_config.json", name)
        tokenizer = AutoTokenizer.from_pretrained(resolve(name), trust_remote_code=trust_remote_code)
    check_vocabulary(tokenizer, name)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.sep_token or tokenizer.unk_token
    if tokenizer.pad_token is None:
        raise InputError(f"Tokenizer of {name} has no special token to pad with; give it a pad_token.")
    return tokenizer


def load_encoder_tokenizer(model: ModelRecipe) -> PreTrainedTokenizerBase:
    """The encoder's tokenizer; if the last token gives the sentence embedding, sentences always end with an end token.

    Otherwise the embedding would come from whatever token the sentence ends with. Tokenizers of base decoders do not
    add an end token. The exported tokenizer does, so that both libraries compute the vectors that were trained.

    Raises:
        InputError: as in `load_tokenizer`, or an end token is needed and cannot be added.
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
    """The first transformer layer, in any model family; its input is the output of the embeddings."""
    depth = backbone.config.num_hidden_layers
    for module in backbone.modules():
        if isinstance(module, nn.ModuleList) and len(module) == depth:
            return module[0]
    raise InputError(f"{type(backbone).__name__} has no list of {depth} layers, so it cannot serve as a discriminator.")


def checkpoint_activations(backbone: PreTrainedModel) -> None:
    """Recompute the backbone's activations in backward.

    Raises:
        InputError: transformers does not support this for the family.
    """
    if not backbone.supports_gradient_checkpointing:
        raise InputError(
            f"{type(backbone).__name__} cannot recompute activations; set model.gradient_checkpointing to false."
        )
    # the reentrant variant fails under ZeRO-2 and 3 if an encoder is called more than once per step
    backbone.gradient_checkpointing_enable({"use_reentrant": False})
