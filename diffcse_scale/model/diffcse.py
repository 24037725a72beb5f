"""DiffCSE: encoder, projection, conditional discriminator and the objective on them (arXiv 2204.10298)."""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from diffcse_kernels import RTDCounts
from torch import Tensor, nn
from transformers import PreTrainedModel

from diffcse_scale.distributed import all_sum, world_size
from diffcse_scale.model.discriminator import ConditionalDiscriminator, RTDHead, RTDLoss
from diffcse_scale.model.encoder import Encoder
from diffcse_scale.model.projection import make_projection
from diffcse_scale.recipe import ObjectiveRecipe
from diffcse_scale.sharded_info_nce import sharded_info_nce
from diffcse_scale.text.batches import Chunk


class StepOutput(NamedTuple):
    """The objective of one global batch, and what is worth logging about it.

    The mean over ranks of each loss and cosine is its value for the global batch (`distributed.py` says why); that of
    the counts is their sum over ranks divided by W.
    """

    loss: Tensor  # what is back-propagated: W times this rank's terms of the global objective
    contrastive: Tensor
    rtd: Tensor
    positive_cosine: Tensor
    negative_cosine: Tensor
    rtd_counts: Tensor  # [4] float: real, replaced, right on replaced, right on kept tokens


class DiffCSE(nn.Module):
    """What is trained: encoder and projection; discriminator and RTD head unless `rtd_weight` is 0.

    The discriminator starts as a copy of the encoder's backbone. The generator is no part of it.

    Args:
        discriminator: the discriminator's backbone; None to copy the encoder's.
    """

    def __init__(
        self,
        backbone: PreTrainedModel,
        objective: ObjectiveRecipe,
        pooling: str = "cls",
        projection: str = "batchnorm",
        discriminator: PreTrainedModel | None = None,
    ) -> None:
        super().__init__()
        width = backbone.config.hidden_size
        self.objective = objective
        if objective.rtd_weight > 0:
            self.discriminator = ConditionalDiscriminator(discriminator or copy.deepcopy(backbone))
            self.rtd_head = RTDHead(width, objective.fidelity)
        self.encoder = Encoder(backbone, pooling)
        self.projection = make_projection(projection, width, getattr(backbone.config, "initializer_range", 0.02))

    def forward(self, chunks: list[Chunk], edited: list[Tensor] | None = None) -> StepOutput:
        """One step on this rank's share of the global batch.

        Args:
            chunks: the share, in one or more pieces padded on their own.
            edited: for each chunk the ids [C, S, L] that the generator wrote; None when `rtd_weight` is 0.
        """
        views = chunks[0].input_ids.shape[1]
        z = self.embed(chunks)
        contrastive, positive_cosine, negative_cosine = self._contrast(z.unflatten(0, (-1, views)))
        loss = self.objective.contrastive_weight * contrastive
        rtd, counts = contrastive.new_zeros(()), contrastive.new_zeros(4)
        if self.objective.rtd_weight > 0:
            assert edited is not None
            detection = self.detect(chunks, edited, z)
            # token means are global too: ranks hold different numbers of real tokens
            rtd = world_size() * detection.loss_sum / all_sum(detection.positions)
            counts = torch.stack(detection.counts).to(rtd.dtype)
            loss = loss + self.objective.rtd_weight * rtd
        return StepOutput(loss, contrastive.detach(), rtd.detach(), positive_cosine, negative_cosine, counts)

    def embed(self, chunks: list[Chunk]) -> Tensor:
        """Projections z of all rows, [n * S, H], views interleaved."""
        h = torch.cat([self.encoder(*_flat(chunk.input_ids, chunk.attention_mask)) for chunk in chunks])
        return self.projection(h)

    def detect(self, chunks: list[Chunk], edited: list[Tensor], z: Tensor) -> RTDLoss:
        """Replaced-token detection, summed over this rank's tokens.

        Each row is conditioned on its own view's z, which is not detached: RTD trains the encoder through it.
        """
        rows = [chunk.input_ids.shape[0] * chunk.input_ids.shape[1] for chunk in chunks]
        losses = []
        for chunk, edited_ids, condition in zip(chunks, edited, z.split(rows), strict=True):
            original_ids, mask = _flat(chunk.input_ids, chunk.attention_mask)
            (edited_rows,) = _flat(edited_ids)
            hidden = self.discriminator(edited_rows, mask, condition)
            losses.append(self.rtd_head(hidden, original_ids, edited_rows, mask))
        return RTDLoss(
            _sum([loss.loss_sum for loss in losses]),
            _sum([loss.positions for loss in losses]),
            RTDCounts(*(_sum(list(column)) for column in zip(*(loss.counts for loss in losses), strict=True))),
        )

    def _contrast(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """z: [n, S, H] of this rank; InfoNCE of its first views against everybody's second (and third) views."""
        z = z.to(torch.promote_types(z.dtype, torch.float32))
        loss, statistics = sharded_info_nce(
            z[:, 0],
            z[:, 1],
            self.objective.temperature,
            hard_negatives=z[:, 2] if z.shape[1] > 2 else None,
            hard_negative_weight=self.objective.hard_negative_weight,
            equal_shares=True,
        )
        return loss, statistics.positive_cosine, statistics.negative_cosine


def _flat(*tokens: Tensor) -> tuple[Tensor, ...]:
    """[C, S, L] to [C * S, L], views interleaved: s0v0, s0v1, s1v0, ..."""
    return tuple(tensor.flatten(0, 1) for tensor in tokens)


def _sum(values: list[Tensor]) -> Tensor:
    return torch.stack(values).sum(0)
