"""Toy networks and batches: real architectures, random weights, ragged sentences."""

from __future__ import annotations

import torch
from transformers import BertConfig, BertModel

from diffcse_scale.distributed import PROCESS_GROUP, Ranks
from diffcse_scale.model.networks import DiffCSENetworks
from diffcse_scale.recipe import ObjectiveRecipe
from diffcse_scale.text.batches import Chunk

VOCABULARY = 60


def toy_backbone(seed: int = 0, dropout: float = 0.0, width: int = 32) -> BertModel:
    """A two-layer BERT whose weights are large enough for gradients to be far from zero."""
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=2 * width,
        max_position_embeddings=32,
        initializer_range=0.2,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    return BertModel(config, add_pooling_layer=False)


def toy_model(
    objective: ObjectiveRecipe, projection: str = "batchnorm", dropout: float = 0.0, ranks: Ranks = PROCESS_GROUP
) -> DiffCSENetworks:
    """Encoder and discriminator with different weights, so that swapping them shows."""
    model = DiffCSENetworks(toy_backbone(dropout=dropout), objective, projection=projection, ranks=ranks)
    if objective.rtd_weight > 0:
        model.discriminator.backbone.load_state_dict(toy_backbone(seed=1).state_dict())
    return model.train()


def toy_chunk(sentences: int = 8, views: int = 2, seed: int = 0) -> tuple[Chunk, torch.Tensor]:
    """Ragged token rows with different views, and edited ids that differ in about a third of the real tokens."""
    generator = torch.Generator().manual_seed(seed)
    # the later the sentence the longer, so that contiguous shares hold very different numbers of real tokens
    lengths = torch.linspace(3, 14, sentences).long()
    length = int(lengths.max())
    ids = torch.randint(5, VOCABULARY, (sentences, views, length), generator=generator)
    mask = (torch.arange(length) < lengths[:, None, None]).long().expand(sentences, views, length).contiguous()
    ids = ids * mask
    ids[..., 0] = 2
    other = torch.randint(5, VOCABULARY, ids.shape, generator=generator)
    replace = (torch.rand(ids.shape, generator=generator) < 0.3) & mask.bool()
    replace[..., 0] = False
    edited = torch.where(replace, other, ids)
    rows = torch.arange(sentences * views).view(sentences, views)
    return Chunk(ids, mask, ids, replace.flatten().nonzero().flatten(), rows), edited


def share(chunk: Chunk, edited: torch.Tensor, rank: int, world_size: int) -> tuple[Chunk, torch.Tensor]:
    """Rank's contiguous rows of a chunk, padded only as far as they need; the first ranks may have one more."""
    own = torch.arange(chunk.input_ids.shape[0]).tensor_split(world_size)[rank]
    rows = slice(int(own[0]), int(own[-1]) + 1)
    length = int(chunk.attention_mask[rows].sum(-1).max())
    cut = [tensor[rows, :, :length] for tensor in (chunk.input_ids, chunk.attention_mask, chunk.corrupted_ids)]
    return Chunk(*cut, torch.empty(0, dtype=torch.long), chunk.row_ids[rows]), edited[rows, :, :length]
