"""What a step computes between a batch and the optimizer: edits, forward, backward."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from diffcse_scale.model.diffcse import StepOutput
from diffcse_scale.model.generator import Generator
from diffcse_scale.recipe import Recipe
from diffcse_scale.text.batches import Batch, Chunk
from diffcse_scale.training.chunking import ChunkedStep
from diffcse_scale.training.engine import device


class TrainingStep:
    """Forward and backward of this rank's share of a global batch; the optimizer's step is the caller's.

    Args:
        engine: the DeepSpeed engine around a `DiffCSE`.
        generator: None when `rtd_weight` is 0, or where batches hold edits that were made before.
    """

    def __init__(self, engine: Any, generator: Generator | None, recipe: Recipe) -> None:
        self.engine, self.generator = engine, generator
        self.chunked = ChunkedStep(engine) if recipe.batch.chunk else None

    def __call__(self, batch: Batch) -> StepOutput:
        """The objective; gradients are where the engine keeps them."""
        chunks = [chunk.to(device(), non_blocking=True) for chunk in batch.chunks]
        edited = self._edit(chunks)
        if self.chunked is not None:
            return self.chunked(chunks, edited)
        output: StepOutput = self.engine(chunks, edited)
        self.engine.backward(output.loss)
        return output

    def _edit(self, chunks: list[Chunk]) -> list[Tensor] | None:
        if self.generator is not None:
            return [self.generator.edit(chunk) for chunk in chunks]
        ready = [chunk.edited_ids for chunk in chunks if chunk.edited_ids is not None]
        return ready or None
