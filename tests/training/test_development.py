"""The development score of an encoder that has no finite embedding is an error, and no score."""

from __future__ import annotations

import pytest
import torch

from diffcse_scale.foundation.finite import NotFinite
from diffcse_scale.model.encoder import Encoder
from diffcse_scale.text.tokenizers import Tokenizers
from diffcse_scale.training.development import DevelopmentSet
from tests.support.tiny_models import tiny_bert, tiny_tokenizer

PAIRS = [(4.0, "a dog runs", "a cat runs"), (1.0, "a dog", "the grass"), (3.0, "a horse", "a cat")]


def test_embeddings_that_are_not_finite_are_named() -> None:
    backbone, tokenizer = tiny_bert(), tiny_tokenizer()
    development = DevelopmentSet(PAIRS, Tokenizers.shared(tokenizer), 16)
    assert -100 <= development.spearman(Encoder(backbone, "mean")) <= 100
    with torch.no_grad():
        backbone.embeddings.word_embeddings.weight[tokenizer.convert_tokens_to_ids("grass")] = 1e30
        with pytest.raises(NotFinite, match="Row 3 of the development sentences has"):
            development.spearman(Encoder(backbone, "mean"))
