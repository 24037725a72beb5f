"""The encoder, which is the network that remains after training: backbone and pooling. It encodes sentences."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from diffcse_scale.distributed import gather_rows, rank, world_size
from diffcse_scale.model.packing import token_vectors
from diffcse_scale.model.pooling import pool, pooling_named
from diffcse_scale.text.batches import padding_id
from diffcse_scale.text.shortening import truncated_ids


class Encoder(nn.Module):
    """Maps the tokens of sentences to sentence embeddings h."""

    def __init__(self, backbone: PreTrainedModel, pooling: str) -> None:
        super().__init__()
        self.backbone = backbone
        self.pooling = pooling

    def forward(self, input_ids: Tensor, attention_mask: Tensor, real: Tensor | None = None) -> Tensor:
        """input_ids, attention_mask: [B, L] int64; real: as `Chunk.real`; returns h [B, H]."""
        asked = {"output_hidden_states": True} if pooling_named(self.pooling).first_and_last else {}
        outputs = token_vectors(self.backbone, input_ids, attention_mask, real, **asked)
        return pool(outputs, attention_mask, self.pooling)


@torch.no_grad()
def encode_sentences(
    encoder: Encoder,
    tokenizer: PreTrainedTokenizerBase,
    sentences: Sequence[str],
    max_length: int,
    batch_size: int = 128,
    tick: Callable[[], None] = lambda: None,
) -> np.ndarray:
    """Embed sentences on all ranks together; the encoder's mode is restored afterwards.

    Call this on all ranks with the same arguments. Sentences are sorted by length and distributed round-robin. Each
    rank makes the same number of forward passes, because ZeRO-3 requires it.

    Args:
        tick: called before each forward pass; it may raise, but must then raise on all ranks.

    Returns:
        [n, H] float32, in the order of `sentences`, the same on every rank.
    """
    device = next(encoder.parameters()).device
    tokens = truncated_ids(tokenizer, sentences, max_length)
    order = np.argsort([-len(ids) for ids in tokens], kind="stable")
    # ranks with too few rows get the shortest sentence as filler, which is dropped after the gather
    filled = np.append(order, np.repeat(order[-1:], -len(order) % world_size()))
    mine = filled[rank() :: world_size()]
    was_training = encoder.training
    encoder.eval()
    parts = []
    for start in range(0, len(mine), batch_size):
        tick()
        rows = [tokens[index] for index in mine[start : start + batch_size]]
        lengths = torch.tensor([len(ids) for ids in rows])
        ids = torch.full((len(rows), int(lengths.max())), padding_id(tokenizer))
        for row, own in zip(ids, rows, strict=True):
            row[: len(own)] = torch.tensor(own)
        mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
        on_device = (tensor.to(device, non_blocking=True) for tensor in (ids, mask))
        parts.append(encoder(*on_device).float())
    encoder.train(was_training)
    gathered = gather_rows(torch.cat(parts)).cpu().numpy()
    by_rank = np.concatenate([filled[other :: world_size()] for other in range(world_size())])
    embeddings = np.empty((len(tokens), gathered.shape[1]), dtype=np.float32)
    embeddings[by_rank] = gathered
    return embeddings
