"""Replaced-token detection: which tokens did the generator replace, given only the edit and the original's z."""

from __future__ import annotations

import torch
from torch import Tensor

from diffcse_scale.distributed import all_sum
from diffcse_scale.model.networks import DiffCSENetworks
from diffcse_scale.objective import gradients_in_z
from diffcse_scale.objective.metric import Metric, Ratio
from diffcse_scale.objective.term import ChunkTerm, Part
from diffcse_scale.recipe import ObjectiveRecipe
from diffcse_scale.text.batches import Chunk


class ReplacedTokens(ChunkTerm):
    """The discriminator's cross-entropy, a mean over the tokens of all ranks.

    Each row is conditioned on its own view's z, which is not detached: RTD trains the encoder through it. What a
    recipe may have instead, for studies, is in `Objective.given`.
    """

    name, title = "rtd", "RTD"
    # counts of tokens
    statistics = ("rtd_real", "rtd_replaced", "rtd_right_on_replaced", "rtd_right_on_kept")
    metrics = (
        Metric(name, "RTD loss", "replaced-token detection", "RTD", "{:.4f}", is_logarithmic=True, panel="RTD loss"),
        Metric(
            "rtd_recall_replaced",
            "RTD recall, replaced tokens",
            pattern="{:.1%}",
            ratio=Ratio("rtd_right_on_replaced", "rtd_replaced"),
        ),
        Metric(
            "rtd_recall_kept",
            "RTD recall, kept tokens",
            pattern="{:.1%}",
            ratio=Ratio("rtd_right_on_kept", "rtd_real", without="rtd_replaced"),
        ),
        Metric(
            "replaced_share",
            "Replaced tokens",
            "share of real tokens",
            pattern="{:.1%}",
            ratio=Ratio("rtd_replaced", "rtd_real"),
        ),
        *gradients_in_z.METRICS,
    )
    evaluated = (
        Metric("dev_rtd_auroc", "RTD AUROC over words", "0.5 is chance; evaluations", pattern="{:.3f}"),
        Metric("dev_rtd_skill", "RTD skill", "1 - loss / entropy of the share replaced; evaluations", pattern="{:.3f}"),
        Metric("dev_rtd_z_gain", "z gain, nats per word", "RTD loss with another sentence's z - own", pattern="{:.4f}"),
        Metric("dev_rtd_replaced"),
    )
    always_reported = True

    @staticmethod
    def weight(recipe: ObjectiveRecipe) -> float:
        """Lambda."""
        return recipe.rtd_weight

    @classmethod
    def words(cls, recipe: ObjectiveRecipe) -> str:
        """With the fidelity: how sentences are edited, and what the mean is over."""
        return f"{super().words(recipe)} ({recipe.fidelity})"

    def prepare(self, networks: DiffCSENetworks, chunks: list[Chunk]) -> Tensor:
        """How many tokens the mean is over, on all ranks: chunks and ranks hold different numbers of them."""
        own = torch.stack([networks.rtd_head.positions(chunk.original_mask) for chunk in chunks]).sum()
        return all_sum(own, self.ranks)

    def __call__(
        self, networks: DiffCSENetworks, chunk: Chunk, edited: Tensor | None, z: Tensor, prepared: Tensor
    ) -> Part:
        """As `ChunkTerm`."""
        assert edited is not None, "replaced-token detection without edited sentences"
        loss = networks.detect(chunk, edited, z)
        mean = self.ranks.world_size * loss.loss_sum / prepared
        counts = torch.stack(loss.counts).to(mean.dtype)
        return Part(mean, dict(zip(self.statistics, counts, strict=True)))
