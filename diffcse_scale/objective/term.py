"""The base classes of the objective's terms. Each term has a file here, and a recipe field with its weight."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal, NamedTuple

from torch import Tensor

from diffcse_scale.distributed import Ranks
from diffcse_scale.model.networks import DiffCSENetworks
from diffcse_scale.objective.metric import Metric
from diffcse_scale.recipe import ObjectiveRecipe
from diffcse_scale.text.batches import Chunk

Exchange = Literal["auto", "gather", "ring"]


class Part(NamedTuple):
    """A term's loss without its weight, 0-dim, and its statistics.

    The mean of a loss or a statistic over ranks is its value for the global batch, because each rank has W times its
    own rows' terms (`diffcse_scale.distributed` says why). The parts of all chunks add up to the part of the share.
    """

    loss: Tensor
    statistics: dict[str, Tensor]  # by the names of `Term.statistics`, 0-dim, without a graph


class Term(ABC):
    """A term of the objective; `BatchTerm` or `ChunkTerm`.

    Args:
        exchange: how keys and queries of different ranks are brought together.
        ranks: the ranks that share the global batch.
        sentences: number of sentences in the global batch, divided over the ranks by `shares_of`. None if all ranks
            have equally many.
    """

    name: ClassVar[str]  # name of its loss among the statistics of a step
    title: ClassVar[str]  # name for readers, in descriptions of the objective
    statistics: ClassVar[tuple[str, ...]] = ()
    metrics: ClassVar[tuple[Metric, ...]]  # its numbers in metrics.jsonl, the loss first
    evaluated: ClassVar[tuple[Metric, ...]] = ()  # its numbers in metrics.jsonl after an evaluation
    always_reported: ClassVar[bool] = False  # if True, zeros are reported when it is not computed

    def __init__(self, recipe: ObjectiveRecipe, exchange: Exchange, ranks: Ranks, sentences: int | None = None) -> None:
        self.recipe, self.exchange, self.ranks, self.sentences = recipe, exchange, ranks, sentences

    @staticmethod
    @abstractmethod
    def weight(recipe: ObjectiveRecipe) -> float:
        """Its weight in the recipe."""

    @classmethod
    def words(cls, recipe: ObjectiveRecipe) -> str:
        """Weight and title, as shown in a run's first table."""
        return f"{cls.weight(recipe):g} x {cls.title}"

    @classmethod
    def is_computed(cls, recipe: ObjectiveRecipe) -> bool:
        """Whether a run with this recipe computes it."""
        return cls.weight(recipe) > 0


class BatchTerm(Term):
    """A term on the projections of a whole share."""

    @abstractmethod
    def __call__(self, z: Tensor, chunks: list[Chunk]) -> Part:
        """z: [n * S, H] in the projection's dtype, with a sentence's S views in consecutive rows; chunks: the share."""


class ChunkTerm(Term):
    """A term that runs networks on the tokens of a chunk, so that only one chunk's activations are alive at a time."""

    def prepare(self, networks: DiffCSENetworks, chunks: list[Chunk]) -> Any:
        """What every chunk's part needs to know about the whole share and about other ranks' shares."""
        return None

    @abstractmethod
    def __call__(
        self, networks: DiffCSENetworks, chunk: Chunk, edited: Tensor | None, z: Tensor, prepared: Any
    ) -> Part:
        """One chunk's part.

        Args:
            edited: the ids [C, S, L] that the generator wrote; None if the recipe has no generator.
            z: [C * S, H], the chunk's rows, not detached.
            prepared: the result of `prepare`.
        """
