"""InfoNCE: the views of a sentence against all other sentences of the global batch."""

from __future__ import annotations

import torch
from torch import Tensor

from diffcse_scale.objective.metric import Metric
from diffcse_scale.objective.sharded_info_nce import sharded_info_nce
from diffcse_scale.objective.term import BatchTerm, Part
from diffcse_scale.recipe import ObjectiveRecipe


class Contrastive(BatchTerm):
    """InfoNCE of the first views of this rank's z against everybody's second (and third) views."""

    name, title = "contrastive", "InfoNCE"
    statistics = ("positive_cosine", "negative_cosine")
    metrics = (
        Metric(name, "Contrastive loss", "InfoNCE", "contrastive", "{:.4f}", is_logarithmic=True, panel="InfoNCE"),
        Metric("positive_cosine", "Cosine of positives", "the two views of a sentence", "pos cos", "{:.3f}"),
        Metric("negative_cosine", "Cosine of negatives", "different sentences", "neg cos", "{:.3f}"),
    )

    @staticmethod
    def weight(recipe: ObjectiveRecipe) -> float:
        """0 is the paper's RTD-only ablation."""
        return recipe.contrastive_weight

    @classmethod
    def is_computed(cls, recipe: ObjectiveRecipe) -> bool:
        """Always: the ablation looks at it too."""
        return True

    def __call__(self, z: Tensor, views: int) -> Part:
        """As `BatchTerm`; computed in at least float32."""
        z = z.to(torch.promote_types(z.dtype, torch.float32)).unflatten(0, (-1, views))
        loss, statistics = sharded_info_nce(
            z[:, 0],
            z[:, 1],
            self.recipe.temperature,
            hard_negatives=z[:, 2] if views > 2 else None,
            hard_negative_weight=self.recipe.hard_negative_weight,
            strategy=self.exchange,
            equal_shares=True,
            ranks=self.ranks,
        )
        return Part(loss, {name: getattr(statistics, name) for name in self.statistics})
