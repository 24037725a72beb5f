"""A loss for sentence-transformers' own trainer.

    from diffcse_scale.losses import MultipleNegativesRankingLoss      # instead of sentence_transformers' one

is the whole change: same arguments, same numbers, without the matrix of all similarities.
"""

from __future__ import annotations

from typing import Any

import torch
from diffcse_kernels import info_nce
from sentence_transformers import SentenceTransformer, losses, util
from torch import Tensor

from diffcse_scale.distributed import gather_rows, rank, row_counts, world_size


class MultipleNegativesRankingLoss(losses.MultipleNegativesRankingLoss):
    """sentence-transformers' loss of this name through `diffcse_kernels.info_nce`.

    Equal, for the columns' embeddings a, p, n1, n2, ... [N, H], to

        F.cross_entropy(scale * cos_sim(a, torch.cat([p, n1, n2, ...])), torch.arange(N))

    With `gather_across_devices` documents come from all ranks, and a rank's last batch may be smaller than the
    others'. It may be wrapped as the original may, in `MatryoshkaLoss` for example.

    Args:
        model: what is trained.
        scale: the inverse of the temperature.
        similarity_fct: `cos_sim` or `dot_score` of `sentence_transformers.util`.
        gather_across_devices: take the documents of all ranks as candidates.
        impl: which kernel: "auto", "triton" or "reference".
        options: the original's others. Of `directions` it takes ("query_to_doc",), which is the default, and
            ("query_to_doc", "doc_to_query") with `partition_mode="per_direction"`.

    Raises:
        ValueError: an option that needs the matrix of similarities.
    """

    def __init__(
        self,
        model: SentenceTransformer,
        scale: float = 20.0,
        similarity_fct: Any = util.cos_sim,
        gather_across_devices: bool = False,
        impl: str = "auto",
        **options: Any,
    ) -> None:
        super().__init__(model, scale, similarity_fct, gather_across_devices, **options)
        self.impl = impl
        directions = options.get("directions", ("query_to_doc",))
        both = set(directions) == {"query_to_doc", "doc_to_query"} and options.get("partition_mode") == "per_direction"
        if similarity_fct not in (util.cos_sim, util.dot_score):
            raise ValueError(f"similarity_fct must be cos_sim or dot_score, not {similarity_fct}")
        if options.get("hardness_mode") is not None or not (both or set(directions) == {"query_to_doc"}):
            raise ValueError(
                "hardness_mode, joint directions and those within queries or documents need the whole matrix of "
                "similarities: take sentence_transformers' own loss for them"
            )
        self.both_directions = both

    def compute_loss_from_embeddings(self, embeddings: list[Tensor], labels: Tensor | None) -> Tensor:
        """Mean over this rank's rows; data-parallel trainers average it, and its gradient, over ranks.

        Args:
            embeddings: queries, positives and any number of negatives, each [N, H].
            labels: not looked at, as in the original.

        Raises:
            ValueError: fewer than two columns.
        """
        if len(embeddings) < 2:
            raise ValueError(f"a batch needs at least two columns (anchor, positive), not {len(embeddings)}")
        queries, positives, *negatives = embeddings
        gather = self.gather_across_devices and world_size() > 1
        shares = row_counts(queries) if gather else [len(queries)]
        loss = self._contrast(queries, positives, negatives, shares)
        return (loss + self._contrast(positives, queries, [], shares)) / 2 if self.both_directions else loss

    def _contrast(self, queries: Tensor, positives: Tensor, negatives: list[Tensor], shares: list[int]) -> Tensor:
        """One direction; `shares` are the rows of all ranks whose documents are candidates, or of this one alone."""
        if len(shares) > 1:
            positives = gather_rows(positives, shares)
            negatives = [gather_rows(column, shares) for column in negatives]
        # every rank's rows weigh the same, whatever the size of its batch
        weight = len(shares) / sum(shares)
        return weight * info_nce(
            queries,
            positives,
            1 / self.scale,
            positive_offset=sum(shares[: rank()]) if len(shares) > 1 else 0,
            hard_negatives=torch.cat(negatives) if negatives else None,
            normalize=self.similarity_fct is util.cos_sim,
            reduction="sum",
            impl=self.impl,
        )
