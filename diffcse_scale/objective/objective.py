"""The objective: a sum of terms, each with its weight.

Functions that run networks are passed to the networks' `forward` (`networks(objective.step, chunks, edited)`), because
an engine that shards or casts acts when the module is called.
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
    """The objective of one global batch, and statistics to log.

    The mean of each number over ranks is its value for the global batch. For counts, this mean is the sum divided by W.
    """

    loss: Tensor  # to back-propagate: W times this rank's terms of the global objective
    statistics: dict[str, Tensor]  # 0-dim: the losses of all terms by `Term.name`, then their `Term.statistics`


Parts = dict[str, Part]  # by term name
FOLLOW_EVERY = 10  # with `rtd_share`, lambda is adjusted after so many steps


def _terms() -> tuple[type[Term], ...]:
    """The terms in all files of this folder, in the order of the file names."""
    modules = [importlib.import_module(f"{objective.__name__}.{file.name}") for file in _files()]
    found = [value for module in modules for value in vars(module).values() if isinstance(value, type)]
    return tuple(dict.fromkeys(value for value in found if issubclass(value, Term) and hasattr(value, "name")))


def _files() -> list[pkgutil.ModuleInfo]:
    return [file for file in pkgutil.iter_modules(objective.__path__) if file.name != __name__.rpartition(".")[2]]


TERMS = _terms()


def in_words(recipe: ObjectiveRecipe) -> str:
    """The objective for a reader: "1 x InfoNCE + 0.005 x RTD (sampled)"."""
    return " + ".join(term.words(recipe) for term in TERMS if term.is_computed(recipe))


class Objective:
    """The terms of a recipe, on this rank's share of the global batch.

    Args:
        exchange: how keys and queries of different ranks are brought together.
        ranks: the ranks that share the global batch.
        sentences: number of sentences in the global batch, divided over the ranks by `shares_of`. None if all ranks
            have equally many.

    Attributes:
        weights: the weights of the terms, by `Term.name`.
        used: the weights of the step that was last begun.
        gradients: the gradients in z, of the terms on the batch and of the terms on chunks.
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
        self.used = dict(self.weights)
        self.gradients = GradientsInZ()
        self._condition, self._warmup, self._share = recipe.condition, recipe.discriminator_warmup, recipe.rtd_share
        self._is_detached = recipe.condition == "detached"
        self.ranks, self._met = ranks, dict[str, Tensor]()  # sums since lambda was last adjusted
        self._of_batch = [term for term in terms if isinstance(term, BatchTerm)]
        self._of_chunk = [term for term in terms if isinstance(term, ChunkTerm)]
        reported = [term for term in TERMS if term.is_computed(recipe) or term.always_reported]
        self._names = [*(term.name for term in reported), *(name for term in reported for name in term.statistics)]

    def begin(self, step: int) -> None:
        """Announce that step `step` of the run, counted from 0, comes next; the discriminator may still warm up."""
        self._is_detached = self._condition == "detached" or step < self._warmup
        self.used = dict(self.weights)

    def after_backward(self, step: int) -> dict[str, Tensor]:
        """Take the sums of `gradients` for step `step`; every `FOLLOW_EVERY` steps adjust lambda. Call on all ranks."""
        # gradients are W times the gradients of the global objective, and their squares are summed over ranks
        found = {name: value / self.ranks.world_size for name, value in self.gradients.take().items()}
        if self._share is not None:
            self._met = {name: value + self._met.get(name, 0) for name, value in found.items()} or self._met
            if (step + 1) % FOLLOW_EVERY == 0:
                self.follow(LENGTH.of(self._met_on_all_ranks()))
                self._met = {}
        return found

    def follow(self, share: float | None) -> None:
        """Move lambda halfway, in logarithms, towards the value at which RTD's gradient in z has the `rtd_share`.

        Args:
            share: the share measured with the current lambda; None if the terms did not meet.
        """
        if self._share is not None and share and math.isfinite(share):
            self.weights["rtd"] *= min(max(self._share / share, 0.25), 4.0) ** 0.5

    def state(self) -> dict[str, dict[str, float]]:
        """The state for a checkpoint, because lambda may have been adjusted. Call on every rank."""
        return {"weights": dict(self.weights), "met": self._met_on_all_ranks()}

    def restore(self, state: dict[str, dict[str, float]]) -> None:
        """Continue from `state`, which is empty in checkpoints of an earlier version."""
        self.weights |= state.get("weights", {})
        met = state.get("met", {}) if self.ranks.rank == 0 else {}
        self._met = {name: torch.tensor(value, dtype=torch.float64) for name, value in met.items()}

    def _met_on_all_ranks(self) -> dict[str, float]:
        names = sorted(self._met)
        values = [self._met[name].double() for name in names]
        return dict(zip(names, all_sum(torch.stack(values), self.ranks).tolist(), strict=True)) if names else {}

    def given(self, z: Tensor, views: int) -> Tensor:
        """The z for the chunk terms, for each row of a share; z: [n * S, H], S views per sentence.

        With condition 'other', a row gets the z of the previous sentence on the same device. Only with this condition
        do results depend on the number of devices.
        """
        if self._condition == "other":
            z = z.roll(views, 0)
        return z.detach() if self._is_detached else z

    def returned(self, gradient: Tensor, views: int) -> Tensor | None:
        """The gradient in z, from the gradient in what `given` returned, [n * S, H]; None if z is detached."""
        if self._is_detached:
            return None
        return gradient.roll(-views, 0) if self._condition == "other" else gradient

    def step(self, networks: DiffCSENetworks, chunks: list[Chunk], edited: list[Tensor] | None = None) -> StepOutput:
        """All terms in one graph.

        Args:
            chunks: the share, in one or more chunks that are padded separately.
            edited: for each chunk the ids [C, S, L] that the generator wrote; None without a generator.
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
        """The terms on all z, [n * S, H], of the share that consists of `chunks`."""
        return {term.name: term(z, chunks) for term in self._of_batch}

    @property
    def has_chunk_terms(self) -> bool:
        """Whether any term runs networks on chunks after the projection."""
        return bool(self._of_chunk)

    def prepare(self, networks: DiffCSENetworks, chunks: list[Chunk]) -> list[Any]:
        """What `chunk_terms` needs to know about the whole share."""
        return [term.prepare(networks, chunks) for term in self._of_chunk]

    def chunk_terms(
        self, networks: DiffCSENetworks, chunk: Chunk, edited: Tensor | None, z: Tensor, prepared: list[Any]
    ) -> Parts:
        """The terms on one chunk; z: [C * S, H], the rows of the chunk."""
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
    """The sums of losses and statistics, term by term; a term may be missing in one of the two."""
    total = {**one, **other}
    for name in one.keys() & other.keys():
        statistics = {key: value + other[name].statistics[key] for key, value in one[name].statistics.items()}
        total[name] = Part(one[name].loss + other[name].loss, statistics)
    return total


def detached(parts: Parts) -> Parts:
    """The same numbers without their graph."""
    return {name: Part(part.loss.detach(), part.statistics) for name, part in parts.items()}
