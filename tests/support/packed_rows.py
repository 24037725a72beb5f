"""Tiny networks of the families that take packed rows, and the same sentences padded and packed."""

from __future__ import annotations

from dataclasses import replace

import torch

from diffcse_scale.model.packing import allow_packing
from diffcse_scale.text.batches import Chunk
from tests.support.tiny_models import WIDE, tiny_backbone
from tests.support.toys import toy_chunk

MASKED_LM = ("bert", "electra", "modernbert", "roberta", "xlm-roberta")
DECODERS = ("llama", "mistral", "qwen2", "qwen3")
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "attention_dropout": 0.0}
NO_DROPOUT |= {"embedding_dropout": 0.0, "mlp_dropout": 0.0}


def backbone(family: str, **changes: object) -> torch.nn.Module:
    """In float64, without dropout."""
    network = tiny_backbone(family, vocab_size=60, **{**WIDE.get(family, {}), **NO_DROPOUT, **changes}).double()
    allow_packing(network)
    return network


def ragged(filled: bool = False) -> tuple[Chunk, Chunk, torch.Tensor]:
    """The same sentences padded and packed, and their edited ids; `filled` packs some padding with the real tokens."""
    chunk, edited = toy_chunk()
    real = chunk.attention_mask.flatten()
    if filled:
        padding = (1 - real).nonzero().flatten()
        real = real.index_fill(0, padding[torch.tensor([0, 1, 2, 20, len(padding) - 1])], 1)
    return chunk, replace(chunk, real=real.nonzero().flatten()), edited
