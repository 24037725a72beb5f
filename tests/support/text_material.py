"""A small WordPiece tokenizer, sentences of every length, and recipes."""

from __future__ import annotations

import numpy as np
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from diffcse_scale.recipe import Recipe
from diffcse_scale.text.tokens import TokenizedCorpus

SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = [f"w{index}" for index in range(200)]


def make_tokenizer(words: list[str]) -> PreTrainedTokenizerFast:
    """WordPiece with one token a word, [CLS] and [SEP] around a sentence."""
    vocabulary = {token: index for index, token in enumerate([*SPECIALS, *words])}
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )


def sentence(index: int) -> str:
    """A sentence that no other index has, of 2 to 13 words."""
    number = f"w{index % 200} w{index // 200}"
    return " ".join([number, *(f"w{(index * 7 + k) % 200}" for k in range(index % 12))])


def training_recipe(**sections: dict[str, object]) -> Recipe:
    """A recipe for `Batches`, which reads its seed, batch and objective only."""
    return Recipe.model_validate(
        {
            "name": "test",
            "model": {"encoder": "unused", "generator": "unused"},
            "data": {"files": "unused"},
            "optimizer": {"learning_rate": 1e-3},
            **sections,
        }
    )


def rows(tokens: TokenizedCorpus, view: int = 0) -> list[list[int]]:
    """The token ids of every row."""
    return [row.tolist() for row in tokens.rows(np.arange(len(tokens)), view)]
