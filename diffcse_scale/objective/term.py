"""What a term of the objective is. Each has a file in this folder, and a field of the recipe that holds its weight."""

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
    """A term's loss without its weight, 0-dim, and what is worth knowing about it.

    The mean over ranks of a loss or a statistic is its value for the global batch: each rank has W times its own rows'
    terms (`diffcse_scale.distributed` says why). Parts of chunks add up to that of the share.
    """

    loss: Tensor
    statistics: dict[str, Tensor]  # by the names of `Term.statistics`, 0-dim, without a graph


class Term(ABC):
    """A term of the objective; `BatchTerm` or `ChunkTerm`.

    Args:
        exchange: how keys and queries of different ranks are brought together.
        ranks: those that have the global batch together.
        sentences: of the global batch, which the ranks share as `shares_of` says; None where each has as many.
    """

    name: ClassVar[str]  # of its loss among the statistics of a step
    title: ClassVar[str]  # where a person reads what the objective is made of
    statistics: ClassVar[tuple[str, ...]] = ()
    metrics: ClassVar[tuple[Metric, ...]]  # what metrics.jsonl says of it, the loss first
    evaluated: ClassVar[tuple[Metric, ...]] = ()  # what metrics.jsonl says of it after an evaluation
    always_reported: ClassVar[bool] = False  # with zeros where it is not computed

    def __init__(self, recipe: ObjectiveRecipe, exchange: Exchange, ranks: Ranks, sentences: int | None = None) -> None:
        self.recipe, self.exchange, self.ranks, self.sentences = recipe, exchange, ranks, sentences

    @staticmethod
    @abstractmethod
    def weight(recipe: ObjectiveRecipe) -> float:
        """Its field of the recipe."""

    @classmethod
    def words(cls, recipe: ObjectiveRecipe) -> str:
        """Weight and title, as a run's first table has them."""
        return f"{cls.weight(recipe):g} x {cls.title}"

    @classmethod
    def is_computed(cls, recipe: ObjectiveRecipe) -> bool:
        """Whether a run with this recipe has it."""
        return cls.weight(recipe) > 0


class BatchTerm(Term):
    """A term on the projections of a whole share."""

    @abstractmethod
    def __call__(self, z: Tensor, chunks: list[Chunk]) -> Part:
        """z: [n * S, H] in the projection's dtype, the S views of a sentence one below the other; chunks: the share."""


class ChunkTerm(Term):
    """A term that runs networks on the tokens of a chunk, and whose activations are alive a chunk at a time."""

    def prepare(self, networks: DiffCSENetworks, chunks: list[Chunk]) -> Any:
        """What the parts of all chunks need to know of the whole share, and of other ranks' shares."""
        return None

    @abstractmethod
    def __call__(
        self, networks: DiffCSENetworks, chunk: Chunk, edited: Tensor | None, z: Tensor, prepared: Any
    ) -> Part:
        """One chunk's part.

        Args:
            edited: the ids [C, S, L] that the generator wrote; None where the recipe has no generator.
            z: [C * S, H], the chunk's rows, not detached.
            prepared: as `prepare` has it.
        """
