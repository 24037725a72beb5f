"""Random models of real families with a tokenizer, small enough to be saved and loaded in every test."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import (
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
SENTENCE = "a dog runs fast over green grass and barks at the cat horse sleeps eats"
WORDS = SENTENCE.split()


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Whole words of `WORDS`, between [CLS] and [SEP]."""
    vocabulary = {word: index for index, word in enumerate(SPECIAL + WORDS)}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing("[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    names = [f"{token.strip('[]').lower()}_token" for token in SPECIAL]
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **dict(zip(names, SPECIAL, strict=True)))


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
