"""The objective: a sum of terms, each with its weight.

What runs networks is handed to the networks' `forward` (`networks(objective.step, chunks, edited)`), because an engine
that shards or casts acts when the module is called.
"""

from __future__ import annotations

import importlib
import math
import operator
import pkgutil
from collections.abc import Sequence
from functools import reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffcse_scale import objective
from diffcse_scale.distributed import PROCESS_GROUP, Ranks, all_sum
from diffcse_scale.model.networks import DiffCSENetworks, split_rows
from diffcse_scale.objective.gradients_in_z import LENGTH, GradientsInZ
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
FOLLOW_EVERY = 10  # steps, with `rtd_share`


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
        sentences: of the global batch, which the ranks share as `shares_of` says; None where each has as many.

    Attributes:
        weights: of the terms by `Term.name`.
        gradients: of the terms on the batch and on chunks, where they meet.
    """

    def __init__(
        self,
        recipe: ObjectiveRecipe,
        exchange: Exchange = "gather",
        ranks: Ranks = PROCESS_GROUP,
        sentences: int | None = None,
    ) -> None:
        terms = [term(recipe, exchange, ranks, sentences) for term in TERMS if term.is_computed(recipe)]
        self.weights = {term.name: term.weight(recipe) for term in terms}
        self.gradients = GradientsInZ()
        self._condition, self._warmup, self._share = recipe.condition, recipe.discriminator_warmup, recipe.rtd_share
        self._is_detached = recipe.condition == "detached"
        self.ranks, self._met = ranks, dict[str, Tensor]()  # since lambda last followed
        self._of_batch = [term for term in terms if isinstance(term, BatchTerm)]
        self._of_chunk = [term for term in terms if isinstance(term, ChunkTerm)]
        reported = [term for term in TERMS if term.is_computed(recipe) or term.always_reported]
        self._names = [*(term.name for term in reported), *(name for term in reported for name in term.statistics)]

    def begin(self, step: int) -> None:
        """What is computed next is step `step` of the run, counted from 0: the discriminator may still warm up."""
        self._is_detached = self._condition == "detached" or step < self._warmup

    def after_backward(self, step: int) -> dict[str, Tensor]:
        """What `gradients` has of step `step`; every `FOLLOW_EVERY` steps lambda follows. Called on every rank."""
        # gradients are W times those of the global objective, and their squares are added up over ranks
        found = {name: value / self.ranks.world_size for name, value in self.gradients.take().items()}
        if self._share is not None:
            self._met = {name: value + self._met.get(name, 0) for name, value in found.items()} or self._met
            if (step + 1) % FOLLOW_EVERY == 0:
                self.follow(LENGTH.of(self._met_on_all_ranks()))
                self._met = {}
        return found

    def follow(self, share: float | None) -> None:
        """Move lambda half of the way, in logarithms, to where RTD's gradient in z has the recipe's `rtd_share`.

        Args:
            share: what was measured with the lambda until now; None where the terms did not meet.
        """
        if self._share is not None and share and math.isfinite(share):
            self.weights["rtd"] *= min(max(self._share / share, 0.25), 4.0) ** 0.5

    def state(self) -> dict[str, dict[str, float]]:
        """What a checkpoint keeps, for the weights may have followed. Called on every rank."""
        return {"weights": dict(self.weights), "met": self._met_on_all_ranks()}

    def restore(self, state: dict[str, dict[str, float]]) -> None:
        """Go on from `state`; that of an earlier version is empty."""
        self.weights |= state.get("weights", {})
        met = state.get("met", {}) if self.ranks.rank == 0 else {}
        self._met = {name: torch.tensor(value, dtype=torch.float64) for name, value in met.items()}

    def _met_on_all_ranks(self) -> dict[str, float]:
        names = sorted(self._met)
        values = [self._met[name].double() for name in names]
        return dict(zip(names, all_sum(torch.stack(values), self.ranks).tolist(), strict=True)) if names else {}

    def given(self, z: Tensor, views: int) -> Tensor:
        """The z that chunk terms are given for each row of a share; z: [n * S, H], S views a sentence.

        Another sentence's is that of the sentence before it on the same device: with condition 'other' alone, numbers
        depend on how many devices there are.
        """
        if self._condition == "other":
            z = z.roll(views, 0)
        return z.detach() if self._is_detached else z

    def returned(self, gradient: Tensor, views: int) -> Tensor | None:
        """The gradient in z, from that in what was `given`, [n * S, H]; None where it is not to reach the encoder."""
        if self._is_detached:
            return None
        return gradient.roll(-views, 0) if self._condition == "other" else gradient

    def step(self, networks: DiffCSENetworks, chunks: list[Chunk], edited: list[Tensor] | None = None) -> StepOutput:
        """All terms in one graph.

        Args:
            chunks: the share, in one or more pieces padded on their own.
            edited: for each chunk the ids [C, S, L] that the generator wrote; None where there is no generator.
        """
        h = torch.cat([networks.encode(chunk) for chunk in chunks])
        z, given = self.gradients.watch(h, networks.project(h))
        parts = self.batch_terms(networks, z, chunks)
        if self.has_chunk_terms:
            given = self.given(given, chunks[0].views)
            prepared = self.prepare(networks, chunks)
            ids: Sequence[Tensor | None] = edited or [None] * len(chunks)
            for chunk, edited_ids, rows in zip(chunks, ids, split_rows(given, chunks), strict=True):
                parts = added(parts, self.chunk_terms(networks, chunk, edited_ids, rows, prepared))
        return self.output(parts)

    def batch_terms(self, networks: DiffCSENetworks, z: Tensor, chunks: list[Chunk]) -> Parts:
        """The terms on all z of a share, [n * S, H], which the `chunks` are."""
        return {term.name: term(z, chunks) for term in self._of_batch}

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
        return reduce(operator.add, (self.weights[name] * part.loss for name, part in parts.items()))

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
