"""A loss for sentence-transformers' own trainer.

    from diffcse_scale.losses import MultipleNegativesRankingLoss      # instead of sentence_transformers' one

No other change is needed. It takes the same arguments and gives the same numbers, without the similarity matrix.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from diffcse_kernels import NegativeSet, info_nce
from diffcse_kernels.gather import gather_rows, place, row_counts
from sentence_transformers import SentenceTransformer, losses, util
from torch import Tensor

__all__ = ["MultipleNegativesRankingLoss"]

PAIRWISE = {util.cos_sim: util.pairwise_cos_sim, util.dot_score: util.pairwise_dot_score}


class _Batch(NamedTuple):
    """The columns of this rank's rows, and those of all competing rows."""

    queries: Tensor  # [n, H]
    documents: list[Tensor]  # positives and negatives, each [n, H]
    all_queries: Tensor  # [N, H]
    all_documents: list[Tensor]  # each [N, H]
    first: int  # index among the N rows of this rank's row 0


class MultipleNegativesRankingLoss(losses.MultipleNegativesRankingLoss):
    """sentence-transformers' loss of the same name, computed by `diffcse_kernels.info_nce`.

    For the columns' embeddings a, p, n1, n2, ... [N, H] it equals

        F.cross_entropy(scale * cos_sim(a, torch.cat([p, n1, n2, ...])), torch.arange(N))

    With `directions`, `partition_mode` and `hardness_mode` it equals the original with the same options. With
    `gather_across_devices` queries and documents come from all ranks, and one rank's last batch may be smaller than
    the others. It can be wrapped like the original, for example in `MatryoshkaLoss`.

    Source: equation 4 of van den Oord et al., 2018 (arXiv 1807.03748). `directions` come from GTE (Li et al., 2023,
    arXiv 2308.03281).

    Args:
        model: the model to train.
        scale: the inverse of the temperature.
        similarity_fct: `cos_sim` or `dot_score` of `sentence_transformers.util`.
        gather_across_devices: let the rows of all ranks compete.
        impl: the kernel: "auto", "triton" or "reference".
        margin: drops likely false negatives. A candidate is not a negative if its similarity to the query (or, in
            directions from documents, to the document) exceeds the positive pair's similarity by more than this.
            None keeps all candidates. The original has no such option.
        arguments, options: the original's other arguments.

    Raises:
        ValueError: `similarity_fct` is another function, or `margin` is used with options that leave out the positive.

    Example:
        >>> from diffcse_scale.embedded import backbone_path
        >>> from diffcse_scale.model_folder.load import load_model
        >>> import torch
        >>> from sentence_transformers import losses
        >>> from diffcse_scale.losses import MultipleNegativesRankingLoss
        >>> model, _ = load_model(backbone_path(), pooling="mean", device="cpu")
        >>> loss, original = MultipleNegativesRankingLoss(model), losses.MultipleNegativesRankingLoss(model)
        >>> columns = [model.tokenize(texts) for texts in (["A dog runs.", "It rains."], ["A dog.", "Rain falls."])]
        >>> with torch.no_grad():
        ...     found = [each.eval()(columns, None) for each in (loss, original)]
        >>> torch.allclose(*found)
        True
    """

    def __init__(
        self,
        model: SentenceTransformer,
        scale: float = 20.0,
        similarity_fct: Any = util.cos_sim,
        gather_across_devices: bool = False,
        *arguments: Any,
        impl: str = "auto",
        margin: float | None = None,
        **options: Any,
    ) -> None:
        super().__init__(model, scale, similarity_fct, gather_across_devices, *arguments, **options)
        self.impl = impl
        self.margin = margin
        if similarity_fct not in PAIRWISE:
            raise ValueError(f"similarity_fct must be cos_sim or dot_score, not {similarity_fct}")
        lacks_positive = "doc_to_doc" in self.directions and "doc_to_query" not in self.directions
        self.in_parts = lacks_positive or (self.hardness_mode is not None and self.hardness_strength > 0)
        if self.in_parts and margin is not None:
            raise ValueError(
                "margin cannot be used with hardness_mode, nor with doc_to_doc without doc_to_query: leave out one"
            )

    def compute_loss_from_embeddings(self, embeddings: list[Tensor], labels: Tensor | None) -> Tensor:
        """Mean over this rank's rows. Data-parallel trainers average it and its gradient over ranks.

        Args:
            embeddings: queries, positives and any number of negatives, each [N, H].
            labels: ignored, as in the original.

        Raises:
            ValueError: there are fewer than two columns.
        """
        if len(embeddings) < 2:
            raise ValueError(f"a batch needs at least two columns (anchor, positive), not {len(embeddings)}")
        rank, ranks = place("world") if self.gather_across_devices else (0, 1)
        shares = row_counts(embeddings[0])[0] if ranks > 1 else [len(embeddings[0])]
        queries, *documents = embeddings
        all_queries = queries if self.directions == ("query_to_doc",) else gather_rows(queries, shares)
        all_documents = [gather_rows(column, shares) for column in documents]
        batch = _Batch(queries, documents, all_queries, all_documents, sum(shares[:rank]))
        # every row has the same weight, whatever the size of its rank's batch
        return (self._in_parts(batch) if self.in_parts else self._with_positives(batch)) * ranks / sum(shares)

    def _with_positives(self, batch: _Batch) -> Tensor:
        """Sum of the losses. In document directions a document's own query is among the keys, as its positive."""
        if "doc_to_query" not in self.directions:
            return self._from_queries(batch, reduction="sum")
        if self.partition_mode == "per_direction":
            back = self._info_nce(batch.documents[0], batch.all_queries, batch.first, reduction="sum")
            return (self._from_queries(batch, reduction="sum") + back) / 2
        losses, of_queries = self._from_queries(batch, reduction="none", return_lse=True)
        same = batch.all_documents if "doc_to_doc" in self.directions else []
        _, of_documents = self._info_nce(
            batch.documents[0],
            batch.all_queries,
            batch.first,
            negatives=[NegativeSet(column, excluded_offset=batch.first) for column in same],
            reduction="none",
            return_lse=True,
        )
        # one softmax over both directions: log(e^x + e^y) is x + log(1 + e^(y - x))
        return (losses + torch.logaddexp(losses.new_zeros(()), of_documents - of_queries)).sum()

    def _from_queries(self, batch: _Batch, **options: Any) -> Any:
        positives, *negatives = batch.all_documents
        queries = [NegativeSet(batch.all_queries, excluded_offset=batch.first)]
        return self._info_nce(
            batch.queries,
            positives,
            batch.first,
            hard_negatives=torch.cat(negatives) if negatives else None,
            negatives=queries if "query_to_query" in self.directions else (),
            **options,
        )

    def _in_parts(self, batch: _Batch) -> Tensor:
        """Sum of the losses, from each direction's logsumexp over other rows. A row's own columns are added singly."""
        mode, strength = self.hardness_mode, self.hardness_strength
        of_others = strength if mode in ("in_batch_negatives", "all_negatives") else 0.0
        of_own = strength if mode in ("hard_negatives", "all_negatives") else 0.0
        positives, *hard = [self._similarities(batch.queries, column) for column in batch.documents]
        parts = {"query_to_doc": [self._others(batch.queries, batch.all_documents, batch.first, of_others)]}
        parts["query_to_doc"] += [self.scale * own + of_own * own.detach() for own in hard]
        for direction, rows, columns in (
            ("query_to_query", batch.queries, [batch.all_queries]),
            ("doc_to_query", batch.documents[0], [batch.all_queries]),
            ("doc_to_doc", batch.documents[0], batch.all_documents),
        ):
            if direction in self.directions:
                parts[direction] = [self._others(rows, columns, batch.first)]
        positives = self.scale * positives
        softmaxes = list(parts.values())
        if self.partition_mode == "joint":
            again = [positives] if "doc_to_query" in self.directions else []  # the positive is in two directions
            softmaxes = [sum(softmaxes, again)]
        excesses = torch.stack([torch.logsumexp(torch.stack(logits), 0) - positives for logits in softmaxes])
        return torch.logaddexp(torch.zeros_like(excesses), excesses).mean(0).sum()

    def _similarities(self, rows: Tensor, others: Tensor) -> Tensor:
        """Similarity of each row to the row of the same index in `others`, [n]."""
        dtype = torch.promote_types(rows.dtype, torch.float32)
        return PAIRWISE[self.similarity_fct](rows.to(dtype), others.to(dtype))

    def _others(self, rows: Tensor, columns: Sequence[Tensor], first: int, hardness: float = 0.0) -> Tensor:
        """Logsumexp [n] of each row's similarities to the columns of the other rows.

        Similarities are multiplied by scale + `hardness`, and the `hardness` part has no gradient. The keys are
        rotated by one row, so the next row's first column takes the positive's place and the row's own is left out.
        """
        total = len(columns[0])
        if total == 1:
            dtype = torch.promote_types(rows.dtype, torch.float32)
            return rows.new_full((len(rows),), torch.finfo(dtype).min, dtype=dtype)
        numbers = torch.arange(total, device=rows.device)
        _, logsumexp = self._info_nce(
            rows,
            columns[0].roll(-1, 0),
            first,
            self.scale + hardness,
            query_ids=numbers[first : first + len(rows)],
            key_ids=numbers.roll(-1),
            negatives=[NegativeSet(column, excluded_offset=first) for column in columns[1:]],
            reduction="none",
            return_lse=True,
        )
        # the gradient is only that of the part multiplied by the scale
        return torch.lerp(logsumexp.detach(), logsumexp, self.scale / (self.scale + hardness))

    def _info_nce(self, rows: Tensor, keys: Tensor, first: int, scale: float | None = None, **options: Any) -> Any:
        return info_nce(
            rows,
            keys,
            1 / (scale or self.scale),
            positive_offset=first,
            normalize=self.similarity_fct is util.cos_sim,
            margin=self.margin,
            impl=self.impl,
            **options,
        )
