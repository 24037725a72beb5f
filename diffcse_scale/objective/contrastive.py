"""InfoNCE: the views of a sentence against all other sentences of the global batch."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from diffcse_scale.objective.metric import Metric
from diffcse_scale.objective.sharded_info_nce import sharded_info_nce
from diffcse_scale.objective.term import BatchTerm, Part
from diffcse_scale.recipe import ObjectiveRecipe
from diffcse_scale.text.batches import Chunk, shares_of


class Contrastive(BatchTerm):
    """InfoNCE of the first views of this rank's z against the second (and third) views of all ranks."""

    name, title = "contrastive", "InfoNCE"
    statistics = ("positive_cosine", "negative_cosine")
    metrics = (
        Metric(name, "Contrastive loss", "InfoNCE", "InfoNCE", "{:.4f}", is_logarithmic=True, panel="InfoNCE"),
        Metric("positive_cosine", "Cosine of positives", "the two views of a sentence", pattern="{:.3f}"),
        Metric("negative_cosine", "Cosine of negatives", "different sentences", pattern="{:.3f}"),
    )

    @staticmethod
    def weight(recipe: ObjectiveRecipe) -> float:
        """The weight; 0 is the paper's RTD-only ablation."""
        return recipe.contrastive_weight

    @classmethod
    def is_computed(cls, recipe: ObjectiveRecipe) -> bool:
        """Always True, because the ablation reports it too."""
        return True

    def __call__(self, z: Tensor, chunks: list[Chunk]) -> Part:
        """See `BatchTerm`. Computed in the dtype of z, or in at least float32 if the recipe says so.

        If the chunks say which texts are equal, no text is a negative of a pair that contains it.
        """
        if self.recipe.contrasts_in_float32:
            z = z.to(torch.promote_types(z.dtype, torch.float32))
        views = z.unflatten(0, (-1, chunks[0].views))
        world_size = self.ranks.world_size
        shares = [len(views)] * world_size if self.sentences is None else shares_of(self.sentences, world_size)
        ids = _ids([chunk.text_ids for chunk in chunks if chunk.text_ids is not None])
        loss, statistics = sharded_info_nce(
            views[:, 0],
            views[:, 1],
            self.recipe.temperature,
            hard_negatives=views[:, 2] if chunks[0].views > 2 else None,
            hard_negative_weight=self.recipe.hard_negative_weight,
            query_ids=ids.queries,
            key_ids=ids.keys,
            hard_negative_ids=ids.hard_negatives,
            strategy=self.exchange,
            shares=shares,
            ranks=self.ranks,
        )
        return Part(loss, {name: getattr(statistics, name) for name in self.statistics})


class _Ids(NamedTuple):
    """The ids that `sharded_info_nce` compares, int64 [n, 3] each; None if nothing is masked."""

    queries: Tensor | None = None
    keys: Tensor | None = None
    hard_negatives: Tensor | None = None


def _ids(texts: list[Tensor]) -> _Ids:
    """Ids from texts [C, S]: anchor, positive and, if S is 3, hard negative.

    A positive is not a negative of a row that has the same anchor or the same positive, or has it as anchor. A hard
    negative is not a negative of a row that has it as anchor or positive.
    """
    if not texts:
        return _Ids()
    anchors, positives, *hard = torch.cat(texts).unbind(1)
    queries, keys = (torch.stack([anchors, positives, last], 1) for last in (anchors, positives))
    return _Ids(queries, keys, hard[0][:, None].repeat(1, 3) if hard else None)
