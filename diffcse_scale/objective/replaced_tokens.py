"""Replaced-token detection: which tokens did the generator replace, given only the edit and z of the original."""

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
    """The discriminator's cross-entropy, averaged over the tokens of all ranks.

    Each row is conditioned on the z of its own view. This z is not detached, because RTD trains the encoder through it.
    `Objective.given` has the alternatives that a recipe may choose for studies.
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
        """Weight, title and fidelity, which decides how sentences are edited and over which tokens the mean is.

        Then whatever differs from DiffCSE.
        """
        differs = {
            "another sentence's z": recipe.condition == "other",
            "z without its gradient": recipe.condition == "detached",
            f"z without its gradient for {recipe.discriminator_warmup} steps": recipe.discriminator_warmup > 0,
            f"discriminator's rate x {recipe.discriminator_rate:g}": recipe.discriminator_rate != 1,
            f"weight adjusted to a share of {recipe.rtd_share}": recipe.rtd_share is not None,
        }
        details = [recipe.fidelity, *(words for words, is_so in differs.items() if is_so)]
        return f"{super().words(recipe)} ({', '.join(details)})"

    def prepare(self, networks: DiffCSENetworks, chunks: list[Chunk]) -> Tensor:
        """The number of tokens on all ranks that the mean is over; chunks and ranks hold different numbers."""
        own = torch.stack([networks.rtd_head.positions(chunk.original_mask) for chunk in chunks]).sum()
        return all_sum(own, self.ranks)

    def __call__(
        self, networks: DiffCSENetworks, chunk: Chunk, edited: Tensor | None, z: Tensor, prepared: Tensor
    ) -> Part:
        """See `ChunkTerm`."""
        assert edited is not None, "replaced-token detection without edited sentences"
        loss = networks.detect(chunk, edited, z)
        mean = self.ranks.world_size * loss.loss_sum / prepared
        counts = torch.stack(loss.counts).to(mean.dtype)
        return Part(mean, dict(zip(self.statistics, counts, strict=True)))
