"""The computation of a step up to the optimizer: edits, forward, backward."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain, pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffcse_scale.distributed import world_size
from diffcse_scale.engine.engine import precision_of
from diffcse_scale.engine.launch import device
from diffcse_scale.model.generator import Generator
from diffcse_scale.objective.gradients_in_parameters import gradients_in_parameters
from diffcse_scale.objective.objective import Objective, StepOutput
from diffcse_scale.recipe import Recipe
from diffcse_scale.text.batches import Batch, Chunk, chunk_of, share_of
from diffcse_scale.training.chunking import ChunkedStep


class _Edited(NamedTuple):
    """A batch whose edits have been started; on a GPU they are ready when `done` has happened."""

    batch: Batch
    chunks: list[Chunk]
    edited: list[Tensor]
    done: torch.cuda.Event | None


class TrainingStep:
    """Forward and backward of this rank's share of a global batch; the caller runs the optimizer's step.

    Args:
        engine: the DeepSpeed engine around a `DiffCSENetworks`.
        generator: None if `rtd_weight` is 0, or if the batches contain edits made before training.
    """

    def __init__(self, engine: Any, generator: Generator | None, recipe: Recipe) -> None:
        self.engine, self.generator = engine, generator
        self.objective = Objective(recipe.objective, recipe.batch.exchange, sentences=recipe.batch.sentences)
        # a share that fits in one chunk is one graph: nothing is gathered or computed twice

        chunk = chunk_of(share_of(recipe.batch, world_size()), recipe.batch.chunk)
        self.chunked = ChunkedStep(engine, self.objective) if chunk else None
        self._measured_every = recipe.objective.parameter_share_every
        self._stream = torch.cuda.Stream(device()) if device().type == "cuda" else None
        self._next: _Edited | None = None

    def ahead(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yield the same batches, and start the edits of the next batch before yielding one.

        On a GPU the generator has its own stream. So it uses the time that the previous step leaves idle: waits for
        other ranks, kernel launches, the optimizer's small kernels. A generator that draws torch's own random numbers
        (`official`) is not run ahead, because that would change their order.
        """
        if self.generator is None or not self.generator.sampled:
            yield from batches
            return
        edited = (self._edit_ahead(self.generator, batch) for batch in batches)
        for ready, _ in pairwise(chain(edited, [None])):  # pairwise takes the next one before it yields this one
            assert ready is not None
            self._next = ready
            yield ready.batch

    def __call__(self, batch: Batch) -> StepOutput:
        """Compute the objective; the gradients are left in the engine."""
        chunks, edited = self.edits_of(batch)
        self.objective.begin(batch.step)
        if self.chunked is not None:
            output: StepOutput = self.chunked(chunks, edited)
        else:
            output = self.engine(self.objective.step, chunks, edited)
            self.engine.backward(output.loss)
        found = self._in_parameters(chunks, batch.step)
        found |= self.objective.after_backward(batch.step)
        return output._replace(statistics={**output.statistics, **found})

    def _in_parameters(self, chunks: list[Chunk], step: int) -> dict[str, Tensor]:
        """If it is due, measure both gradients on the encoder's parameters."""
        if self._measured_every is None or step % self._measured_every:
            return {}
        with precision_of(self.engine):
            return gradients_in_parameters(self.engine.module, chunks, self.objective.gradients, self.objective.ranks)

    def edits_of(self, batch: Batch) -> tuple[list[Chunk], list[Tensor] | None]:
        """The batch on the device, and the edited ids of each chunk (None without RTD)."""
        known, self._next = self._next, None
        if known is not None and known.batch is batch:
            if known.done is not None:
                main = torch.cuda.current_stream()
                main.wait_event(known.done)
                for ids in known.edited:
                    ids.record_stream(main)  # they were allocated on the other stream
            return known.chunks, known.edited
        chunks = _on_device(batch)
        if self.generator is not None:
            return chunks, [self.generator.edit(chunk) for chunk in chunks]
        ready = [chunk.edited_ids for chunk in chunks if chunk.edited_ids is not None]
        return chunks, ready or None

    def _edit_ahead(self, generator: Generator, batch: Batch) -> _Edited:
        chunks = _on_device(batch)
        if self._stream is None:
            return _Edited(batch, chunks, [generator.edit(chunk) for chunk in chunks], None)
        self._stream.wait_stream(torch.cuda.current_stream())  # the current stream copies the chunks
        with torch.cuda.stream(self._stream):
            edited = [generator.edit(chunk) for chunk in chunks]
        return _Edited(batch, chunks, edited, self._stream.record_event())


def _on_device(batch: Batch) -> list[Chunk]:
    return [chunk.to(device(), non_blocking=True) for chunk in batch.chunks]
