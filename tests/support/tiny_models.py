"""Random models of real families with a tokenizer, small enough to be saved and loaded in every test."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import ByteLevel, Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaModel,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Tokenizer,
)

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
END = "<|endoftext|>"
BYTES = 300  # room for the vocabulary of `tiny_byte_tokenizer`
SENTENCE = "a dog runs fast over green grass and barks at the cat horse sleeps eats"
WORDS = SENTENCE.split()

# What every tiny member of a family has. The weights are large enough for a mistake to show in the output.
SIZES = {
    "vocab_size": 32,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 40,
    "initializer_range": 0.2,
    "pad_token_id": 0,
}
DECODER = {"num_key_value_heads": 1, "attention_dropout": 0.1, "bos_token_id": 2, "eos_token_id": 3}
MASKED_LM_FAMILIES = {
    "bert": {},
    "roberta": {"bos_token_id": 2, "eos_token_id": 3},  # numbers positions from pad + 1, as the next and MPNet
    "xlm-roberta": {"bos_token_id": 2, "eos_token_id": 3},
    "electra": {"embedding_size": 16},  # narrower than the layers: projected
    "deberta-v2": {
        "relative_attention": True,
        "position_buckets": 8,
        "pos_att_type": ["p2c", "c2p"],
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "position_biased_input": False,
    },
    "modernbert": {
        "global_attn_every_n_layers": 2,  # the first layer global, the second local
        "local_attention": 4,
        "embedding_dropout": 0.1,
        "attention_dropout": 0.1,
        "mlp_dropout": 0.1,
        "bos_token_id": 2,
        "eos_token_id": 3,
        "cls_token_id": 2,
        "sep_token_id": 3,
    },
    "mpnet": {"bos_token_id": 2, "eos_token_id": 3},
}
DECODER_FAMILIES = {
    "qwen2": DECODER,
    "qwen3": {**DECODER, "head_dim": 12},
    "llama": DECODER,
    "mistral": {**DECODER, "sliding_window": 4},
}
FAMILIES = {**MASKED_LM_FAMILIES, **DECODER_FAMILIES}
# for `tiny_backbone`: attention reaches over the whole row, and not over 2 to 4 tokens
WIDE = {"modernbert": {"local_attention": 64}, "mistral": {"sliding_window": 32}}


def tiny_config(family: str, **changes: Any) -> PreTrainedConfig:
    """The family's configuration in `SIZES`, dropout on where the family has it."""
    return AutoConfig.for_model(family, **{**SIZES, **FAMILIES[family], **changes})


def tiny_backbone(family: str, attn_implementation: str | None = None, **changes: Any) -> PreTrainedModel:
    """The family's `AutoModel`, as `load_backbone` would give it; in eval mode."""
    torch.manual_seed(0)
    backbone = AutoModel.from_config(
        tiny_config(family, **changes), **({"attn_implementation": attn_implementation} if attn_implementation else {})
    ).eval()
    if getattr(backbone, "pooler", None) is not None:
        backbone.pooler = None
    return backbone


def tiny_masked_lm(family: str, **changes: Any) -> PreTrainedModel:
    """The family's `AutoModelForMaskedLM` with a bias that is not zero, in eval mode."""
    torch.manual_seed(0)
    model = AutoModelForMaskedLM.from_config(tiny_config(family, **changes)).eval()
    torch.nn.init.normal_(model.get_output_embeddings().bias)
    return model


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Whole words of `WORDS`, between [CLS] and [SEP]."""
    vocabulary = {word: index for index, word in enumerate(SPECIAL + WORDS)}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing("[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    names = [f"{token.strip('[]').lower()}_token" for token in SPECIAL]
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **dict(zip(names, SPECIAL, strict=True)))


def tiny_byte_tokenizer() -> PreTrainedTokenizerFast:
    """As a base decoder's: every byte a token, no padding token, nothing added before or after the sentence."""
    characters = {character: index for index, character in enumerate(sorted(ByteLevel.alphabet()))}
    return Qwen2Tokenizer(vocab={**characters, END: len(characters)}, merges=[], eos_token=END, pad_token=None)


def tiny_bert() -> PreTrainedModel:
    """Three layers, width 24, no pooler, dropout off."""
    torch.manual_seed(0)
    config = BertConfig(vocab_size=32, hidden_size=24, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32)
    return BertModel(config, add_pooling_layer=False).eval()


def tiny_llama() -> PreTrainedModel:
    """Decoder only: two layers, width 24."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=32,
        pad_token_id=0,
    )
    return LlamaModel(config).eval()
