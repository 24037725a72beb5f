"""DiffCSE: encoder, projection, conditional discriminator and the objective on them (arXiv 2204.10298)."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from diffcse_scale.distributed import all_sum, world_size
from diffcse_scale.model.discriminator import ConditionalDiscriminator, RTDHead
from diffcse_scale.model.encoder import Encoder
from diffcse_scale.model.projection import make_projection
from diffcse_scale.randomness import derive_seed, seed_everything
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


class Contrast(NamedTuple):
    """InfoNCE of a share and its statistics; the mean over ranks is the value for the global batch."""

    loss: Tensor
    positive_cosine: Tensor
    negative_cosine: Tensor


class DiffCSE(nn.Module):
    """What is trained: encoder and projection; discriminator and RTD head unless `rtd_weight` is 0.

    The generator is no part of it.

    Args:
        discriminator: the discriminator's backbone; None to copy the encoder's.
        condition_is_mapped: whether z enters the discriminator through a learnt linear map, as where that is another
            network than the encoder.
    """

    def __init__(
        self,
        backbone: PreTrainedModel,
        objective: ObjectiveRecipe,
        pooling: str = "cls",
        projection: str = "batchnorm",
        discriminator: PreTrainedModel | None = None,
        condition_is_mapped: bool = False,
    ) -> None:
        super().__init__()
        width = backbone.config.hidden_size
        self.objective = objective
        if objective.rtd_weight > 0:
            condition_width = width if condition_is_mapped else None
            self.discriminator = ConditionalDiscriminator(discriminator or copy.deepcopy(backbone), condition_width)
            self.rtd_head = RTDHead(self.discriminator.backbone.config.hidden_size, objective.fidelity)
        self.encoder = Encoder(backbone, pooling)
        self.projection = make_projection(projection, width, getattr(backbone.config, "initializer_range", 0.02))

    def forward(self, *arguments: Any, part: str = "step") -> Any:
        """Compute one of the parts below, by its name.

        An engine that shards or casts acts when the module is called and not when one of its methods is, so whatever
        training computes is asked for here.
        """
        return getattr(self, part)(*arguments)

    def step(self, chunks: list[Chunk], edited: list[Tensor] | None = None) -> StepOutput:
        """The objective of this rank's share of the global batch, in one graph.

        Args:
            chunks: the share, in one or more pieces padded on their own.
            edited: for each chunk the ids [C, S, L] that the generator wrote; None when `rtd_weight` is 0.
        """
        z = self.project(torch.cat([self.encode(chunk) for chunk in chunks]))
        contrast = self.contrast(z, chunks[0].views)
        rtd, counts = contrast.loss.new_zeros(()), contrast.loss.new_zeros(4)
        if edited is not None:
            positions = self.rtd_positions(chunks)
            for chunk, edited_ids, rows in zip(chunks, edited, split_rows(z, chunks), strict=True):
                part, part_counts = self.detect(chunk, edited_ids, rows, positions)
                rtd, counts = rtd + part, counts + part_counts
        return self.output(contrast, rtd, counts)

    def output(self, contrast: Contrast, rtd: Tensor, counts: Tensor) -> StepOutput:
        """The objective from its parts."""
        loss = self.objective.contrastive_weight * contrast.loss + self.objective.rtd_weight * rtd
        return StepOutput(
            loss, contrast.loss.detach(), rtd.detach(), contrast.positive_cosine, contrast.negative_cosine, counts
        )

    def encode(self, chunk: Chunk) -> Tensor:
        """Sentence embeddings h of a chunk's rows, [C * S, H], views interleaved."""
        _seed(chunk, "encoder")
        return self.encoder(*_flat(chunk.input_ids, chunk.attention_mask), chunk.real)

    def project(self, h: Tensor) -> Tensor:
        """Projections z, [rows, H]; all rows of a share together, for the statistics of BatchNorm."""
        return self.projection(h)

    def contrast(self, z: Tensor, views: int) -> Contrast:
        """InfoNCE of the first views of this rank's z [n * S, H] against everybody's second (and third) views."""
        z = z.to(torch.promote_types(z.dtype, torch.float32)).unflatten(0, (-1, views))
        loss, statistics = sharded_info_nce(
            z[:, 0],
            z[:, 1],
            self.objective.temperature,
            hard_negatives=z[:, 2] if views > 2 else None,
            hard_negative_weight=self.objective.hard_negative_weight,
            equal_shares=True,
        )
        return Contrast(loss, statistics.positive_cosine, statistics.negative_cosine)

    def detect(self, chunk: Chunk, edited: Tensor, z: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Replaced-token detection on one chunk.

        Args:
            edited: the ids [C, S, L] that the generator wrote.
            z: [C * S, H]. Each row is conditioned on its own view's z, which is not detached: RTD trains the encoder
                through it.
            positions: `rtd_positions` of the whole share.

        Returns:
            This chunk's part of the mean over the tokens of all ranks, times W; and the counts of `StepOutput`.
        """
        _seed(chunk, "discriminator")
        original_ids, mask, edited_ids = _flat(chunk.original_ids, chunk.original_mask, edited)
        loss = self.rtd_head(
            self.discriminator(edited_ids, mask, z, chunk.original_real), original_ids, edited_ids, mask
        )
        mean = world_size() * loss.loss_sum / positions
        return mean, torch.stack(loss.counts).to(mean.dtype)

    def rtd_positions(self, chunks: list[Chunk]) -> Tensor:
        """How many tokens RTD is averaged over, on all ranks: chunks and ranks hold different numbers of them."""
        return all_sum(torch.stack([self.rtd_head.positions(chunk.original_mask) for chunk in chunks]).sum())

    def touch(self, chunk: Chunk) -> Tensor:
        """Zero, 0-dim, with a graph to every trained parameter: one row of a chunk goes through all networks."""
        training = self.projection.training
        h = self.encoder(chunk.input_ids[:1, 0], chunk.attention_mask[:1, 0])
        z = self.projection.eval()(h)  # one row has no statistics of its own
        self.projection.train(training)
        total = z.sum()
        if self.objective.rtd_weight > 0:
            ids, mask = chunk.original_ids[:1, 0], chunk.original_mask[:1, 0]
            total = total + self.rtd_head(self.discriminator(ids, mask, z), ids, ids, mask).loss_sum
        return 0.0 * total


def split_rows(rows: Tensor, chunks: list[Chunk]) -> tuple[Tensor, ...]:
    """Cut what was computed for all chunks together, [n * S, ...], into the rows of each."""
    return rows.split([chunk.input_ids.shape[0] * chunk.views for chunk in chunks])


def _seed(chunk: Chunk, network: str) -> None:
    """Whoever runs `network` on `chunk` again gets the same random numbers."""
    if chunk.seed is not None:
        seed_everything(derive_seed(chunk.seed, network))


def _flat(*tokens: Tensor) -> tuple[Tensor, ...]:
    """[C, S, L] to [C * S, L], views interleaved: s0v0, s0v1, s1v0, ..."""
    return tuple(tensor.flatten(0, 1) for tensor in tokens)
