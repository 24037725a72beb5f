"""The objective: a sum of terms, each with its weight.

What runs networks is handed to the networks' `forward` (`networks(objective.step, chunks, edited)`), because an engine
that shards or casts acts when the module is called.
"""

from __future__ import annotations

import importlib
import operator
import pkgutil
from collections.abc import Sequence
from functools import reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffcse_scale import objective
from diffcse_scale.distributed import PROCESS_GROUP, Ranks
from diffcse_scale.model.networks import DiffCSENetworks, split_rows
from diffcse_scale.objective.term import BatchTerm, ChunkTerm, Exchange, Part, Term
from diffcse_scale.recipe import ObjectiveRecipe
from diffcse_scale.text.batches import Chunk


class StepOutput(NamedTuple):
    """The objective of one global batch, and what is worth logging about it.

    The mean over ranks of each number is its value for the global batch; that of counts is their sum divided by W.
    """

    loss: Tensor  # what is back-propagated: W times this rank's terms of the global objective
    statistics: dict[str, Tensor]  # 0-dim: the losses of all terms by `Term.name`, then their `Term.statistics`


Parts = dict[str, Part]  # by the names of the terms


def _terms() -> tuple[type[Term], ...]:
    """Those of all files of this folder, in the order of the files' names."""
    modules = [importlib.import_module(f"{objective.__name__}.{file.name}") for file in _files()]
    found = [value for module in modules for value in vars(module).values() if isinstance(value, type)]
    return tuple(dict.fromkeys(value for value in found if issubclass(value, Term) and hasattr(value, "name")))


def _files() -> list[pkgutil.ModuleInfo]:
    return [file for file in pkgutil.iter_modules(objective.__path__) if file.name != __name__.rpartition(".")[2]]


TERMS = _terms()


def in_words(recipe: ObjectiveRecipe) -> str:
    """What the objective is, for a person: "1 x InfoNCE + 0.005 x RTD (sampled)"."""
    return " + ".join(term.words(recipe) for term in TERMS if term.is_computed(recipe))


class Objective:
    """The terms that a recipe has, on this rank's share of the global batch.

    Args:
        exchange: how keys and queries of different ranks are brought together.
        ranks: those that have the global batch together.
    """

    def __init__(self, recipe: ObjectiveRecipe, exchange: Exchange = "gather", ranks: Ranks = PROCESS_GROUP) -> None:
        terms = [term(recipe, exchange, ranks) for term in TERMS if term.is_computed(recipe)]
        self._weights = {term.name: term.weight(recipe) for term in terms}
        self._of_batch = [term for term in terms if isinstance(term, BatchTerm)]
        self._of_chunk = [term for term in terms if isinstance(term, ChunkTerm)]
        reported = [term for term in TERMS if term.is_computed(recipe) or term.always_reported]
        self._names = [*(term.name for term in reported), *(name for term in reported for name in term.statistics)]

    def step(self, networks: DiffCSENetworks, chunks: list[Chunk], edited: list[Tensor] | None = None) -> StepOutput:
        """All terms in one graph.

        Args:
            chunks: the share, in one or more pieces padded on their own.
            edited: for each chunk the ids [C, S, L] that the generator wrote; None where there is no generator.
        """
        z = networks.project(torch.cat([networks.encode(chunk) for chunk in chunks]))
        parts = self.batch_terms(networks, z, chunks[0].views)
        if self.has_chunk_terms:
            prepared = self.prepare(networks, chunks)
            ids: Sequence[Tensor | None] = edited or [None] * len(chunks)
            for chunk, edited_ids, rows in zip(chunks, ids, split_rows(z, chunks), strict=True):
                parts = added(parts, self.chunk_terms(networks, chunk, edited_ids, rows, prepared))
        return self.output(parts)

    def batch_terms(self, networks: DiffCSENetworks, z: Tensor, views: int) -> Parts:
        """The terms on all z of a share, [n * S, H]."""
        return {term.name: term(z, views) for term in self._of_batch}

    @property
    def has_chunk_terms(self) -> bool:
        """Whether anything runs networks on chunks after the projection."""
        return bool(self._of_chunk)

    def prepare(self, networks: DiffCSENetworks, chunks: list[Chunk]) -> list[Any]:
        """What `chunk_terms` needs to know of the whole share."""
        return [term.prepare(networks, chunks) for term in self._of_chunk]

    def chunk_terms(
        self, networks: DiffCSENetworks, chunk: Chunk, edited: Tensor | None, z: Tensor, prepared: list[Any]
    ) -> Parts:
        """The terms on one chunk, z: [C * S, H] its rows."""
        terms = zip(self._of_chunk, prepared, strict=True)
        return {term.name: term(networks, chunk, edited, z, known) for term, known in terms}

    def total(self, parts: Parts) -> Tensor:
        """The weighted sum of some terms' losses."""
        return reduce(operator.add, (self._weights[name] * part.loss for name, part in parts.items()))

    def output(self, parts: Parts) -> StepOutput:
        """The objective from the parts of all its terms."""
        loss = self.total(parts)
        known = {name: part.loss.detach() for name, part in parts.items()}
        for part in parts.values():
            known |= part.statistics
        if len(known) < len(self._names):
            known = {**dict.fromkeys(self._names, loss.new_zeros(())), **known}
        return StepOutput(loss, {name: known[name] for name in self._names})


def added(one: Parts, other: Parts) -> Parts:
    """Sums of losses and statistics, term by term; a term may be in one of them only."""
    total = {**one, **other}
    for name in one.keys() & other.keys():
        statistics = {key: value + other[name].statistics[key] for key, value in one[name].statistics.items()}
        total[name] = Part(one[name].loss + other[name].loss, statistics)
    return total


def detached(parts: Parts) -> Parts:
    """The same numbers without their graph."""
    return {name: Part(part.loss.detach(), part.statistics) for name, part in parts.items()}
