"""DiffCSE's networks: encoder, projection, conditional discriminator (arXiv 2204.10298)."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TypeVar

from torch import Tensor, nn
from transformers import PreTrainedModel

from diffcse_scale.distributed import PROCESS_GROUP, Ranks
from diffcse_scale.foundation.randomness import derive_seed, seed_everything, seed_initial_numbers
from diffcse_scale.model.discriminator import ConditionalDiscriminator, RTDHead, RTDLoss
from diffcse_scale.model.encoder import Encoder
from diffcse_scale.model.projection import make_projection
from diffcse_scale.recipe import ObjectiveRecipe
from diffcse_scale.text.batches import Chunk

T = TypeVar("T")


class DiffCSENetworks(nn.Module):
    """The trained networks: encoder and projection; discriminator and RTD head unless `rtd_weight` is 0.

    The generator is not part of this module.

    Args:
        discriminator: the discriminator's backbone; None to copy the encoder's.
        condition_is_mapped: whether z enters the discriminator through a learnt linear map. This is for a
            discriminator that is not a copy of the encoder.
        seed: seed for the initial weights of projection, RTD head and this map; each is drawn independently.
        ranks: the ranks that share the global batch.
    """

    def __init__(
        self,
        backbone: PreTrainedModel,
        objective: ObjectiveRecipe,
        pooling: str = "cls",
        projection: str = "batchnorm",
        discriminator: PreTrainedModel | None = None,
        condition_is_mapped: bool = False,
        seed: int = 0,
        ranks: Ranks = PROCESS_GROUP,
    ) -> None:
        super().__init__()
        width = backbone.config.hidden_size
        self.objective = objective
        if objective.rtd_weight > 0:
            condition_width = width if condition_is_mapped else None
            seed_initial_numbers(seed, "discriminator.map")
            self.discriminator = ConditionalDiscriminator(discriminator or copy.deepcopy(backbone), condition_width)
            seed_initial_numbers(seed, "rtd_head")
            self.rtd_head = RTDHead(self.discriminator.backbone.config.hidden_size, objective.fidelity)
        self.encoder = Encoder(backbone, pooling)
        seed_initial_numbers(seed, "projection")
        initializer_range = getattr(backbone.config, "initializer_range", 0.02)
        self.projection = make_projection(projection, width, initializer_range, ranks, objective.contrasts_in_float32)

    def forward(self, function: Callable[..., T], *arguments: object) -> T:
        """Return `function(self, *arguments)`.

        An engine that shards or casts acts when the module is called, but not when one of its methods is called.
        Everything that training computes must therefore be called through this function.
        """
        return function(self, *arguments)

    def encode(self, chunk: Chunk) -> Tensor:
        """Sentence embeddings h of a chunk's rows, [C * S, H], views interleaved."""
        _seed(chunk, "encoder")
        return self.encoder(*_flat(chunk.input_ids, chunk.attention_mask), chunk.real)

    def project(self, h: Tensor) -> Tensor:
        """Projections z, [rows, H]; pass all rows of a share together, because BatchNorm needs their statistics."""
        return self.projection(h)

    def detect(self, chunk: Chunk, edited: Tensor, z: Tensor) -> RTDLoss:
        """Replaced-token detection on one chunk; edited: the ids [C, S, L] that the generator wrote; z: [C * S, H]."""
        _seed(chunk, "discriminator")
        original_ids, mask, edited_ids = _flat(chunk.original_ids, chunk.original_mask, edited)
        hidden = self.discriminator(edited_ids, mask, z, chunk.original_real)
        loss: RTDLoss = self.rtd_head(hidden, original_ids, edited_ids, mask)
        return loss

    def logits(self, chunk: Chunk, edited: Tensor, z: Tensor) -> Tensor:
        """The logits behind `detect`, [C * S, L] float32: that each token was replaced; meaningless on padding."""
        mask, edited_ids = _flat(chunk.original_mask, edited)
        found: Tensor = self.rtd_head(self.discriminator(edited_ids, mask, z, chunk.original_real))
        return found

    def touch(self, chunk: Chunk) -> Tensor:
        """Zero, 0-dim, with a graph to every trained parameter; one row of a chunk passes through all networks."""
        training = self.projection.training
        h = self.encoder(chunk.input_ids[:1, 0], chunk.attention_mask[:1, 0])
        z = self.projection.eval()(h)  # a single row has no batch statistics
        self.projection.train(training)
        total = z.sum()
        if self.objective.rtd_weight > 0:
            ids, mask = chunk.original_ids[:1, 0], chunk.original_mask[:1, 0]
            total = total + self.rtd_head(self.discriminator(ids, mask, z), ids, ids, mask).loss_sum
        return 0.0 * total


def split_rows(rows: Tensor, chunks: list[Chunk]) -> tuple[Tensor, ...]:
    """Split a tensor for all chunks together, [n * S, ...], into the rows of each chunk."""
    return rows.split([chunk.input_ids.shape[0] * chunk.views for chunk in chunks])


def _seed(chunk: Chunk, network: str) -> None:
    """Seed the random numbers, so that running `network` on `chunk` again draws the same numbers."""
    if chunk.seed is not None:
        seed_everything(derive_seed(chunk.seed, network))


def _flat(*tokens: Tensor) -> tuple[Tensor, ...]:
    """[C, S, L] to [C * S, L], views interleaved: s0v0, s0v1, s1v0, ..."""
    return tuple(tensor.flatten(0, 1) for tensor in tokens)
