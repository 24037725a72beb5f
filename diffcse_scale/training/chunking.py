"""Large batches (gradient caching): only the embeddings need memory that grows with the sentences per device.

Gradient caching (Gao et al., arXiv 2101.06983), for sums of terms and under every ZeRO stage:

1. encode all chunks without a graph: h of the whole share;
2. the projection of h, with a graph;
3. for each chunk the terms that run networks on it (RTD), forward and backward: the gradient of its rows of z;
4. the terms on all z (InfoNCE), and backward through the projection: the gradient of h;
5. encode each chunk again, with the same random numbers (`Chunk.seed`), and send its rows' gradient backward.

The activations of one chunk are alive at a time. Nothing is approximated, and nothing but the encoder's first
forward pass is computed in addition.

A step thus has many backward passes and one gradient. DeepSpeed (0.19.8) reduces gradients at the end of each pass at
ZeRO-2 and 3, and at the accumulation boundary, which only the last pass is, at ZeRO-0 and 1. Where all parameters take
part in all passes, as in ordinary accumulation, that is right; here most passes reach a part of them, and then

- ZeRO-3 adds the gradient of a parameter that the *first* pass does not reach to that of the step before, for it is
  the first pass that clears buffers; so does ZeRO-2 with an offloaded optimizer;
- ZeRO-1 with `overlap_comm` reduces only what the *last* pass reaches; with an offloaded optimizer, ZeRO-2 and 3 hand
  only that over to it.

So in the first or last pass, where the stage needs it, every trained parameter takes part with weight 0
(`DiffCSENetworks.touch`, one row). Gradients stay sharded, as they would not inside `coalesce_grad_reduction`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from diffcse_scale.foundation.errors import InputError
from diffcse_scale.model.networks import DiffCSENetworks, split_rows
from diffcse_scale.objective.objective import Objective, Parts, StepOutput, added, detached
from diffcse_scale.text.batches import Chunk

# relative difference of an embedding that rounding in bfloat16 cannot explain, and another dropout mask exceeds
REPLAY_TOLERANCE = 0.05


class ChunkedStep:
    """Forward and backward of one global batch, chunk by chunk; the engine's step is the caller's."""

    def __init__(self, engine: Any, objective: Objective) -> None:
        self.engine, self.objective = engine, objective
        self.model: DiffCSENetworks = engine.module
        stage, offload = engine.zero_optimization_stage(), engine.zero_offload_optimizer() is not None
        self._touch_first = stage == 3 or (stage == 2 and offload)
        self._touch_last = (stage == 1 and engine.zero_overlap_comm()) or (stage >= 2 and offload)
        self._replay_is_checked = False

    def __call__(self, chunks: list[Chunk], edited: list[Tensor] | None = None) -> StepOutput:
        """The same numbers and gradients as `Objective.step` and one backward pass.

        Raises:
            InputError: the encoder's second pass over a chunk differs from its first.
        """
        self.engine.set_gradient_accumulation_boundary(False)
        self._is_first_pass = True
        with torch.no_grad():
            h = torch.cat([self.engine(DiffCSENetworks.encode, chunk) for chunk in chunks])
        h.requires_grad_()
        z = self.engine(DiffCSENetworks.project, h)
        parts: Parts = {}
        if self.objective.has_chunk_terms:
            parts, z_gradient = self._chunk_terms(chunks, edited or [None] * len(chunks), z.detach())
            if z_gradient is not None:
                z.register_hook(lambda gradient: self._meet(h, gradient, z_gradient))
        on_z = self.engine(self.objective.batch_terms, z, chunks)
        # DeepSpeed fails in a pass that reaches no parameter
        touch = not any(parameter.requires_grad for parameter in self.model.projection.parameters())
        self._backward(self.objective.total(on_z), chunks[0], touch)
        assert h.grad is not None
        again = zip(chunks, split_rows(h.detach(), chunks), split_rows(h.grad, chunks), strict=True)
        for chunk, rows, gradient in again:
            self._encode_again(chunk, rows, gradient, is_last=chunk is chunks[-1])
        self._replay_is_checked = True
        return self.objective.output({**detached(on_z), **parts})

    def _meet(self, h: Tensor, of_batch: Tensor, of_chunks: Tensor) -> Tensor:
        """The gradient in z of all terms."""
        self.objective.gradients.note(h, of_batch, of_chunks)
        return of_batch + of_chunks

    def _chunk_terms(
        self, chunks: list[Chunk], edited: Sequence[Tensor | None], z: Tensor
    ) -> tuple[Parts, Tensor | None]:
        """What runs networks on chunks, and its gradient in z (times the loss scale), [n * S, H]; None if detached."""
        prepared = self.objective.prepare(self.model, chunks)
        parts: Parts = {}
        gradients = []
        given = self.objective.given(z, chunks[0].views)
        for chunk, edited_ids, rows in zip(chunks, edited, split_rows(given, chunks), strict=True):
            rows.requires_grad_()
            of_chunk = self.engine(self.objective.chunk_terms, chunk, edited_ids, rows, prepared)
            self._backward(self.objective.total(of_chunk), chunk)
            assert rows.grad is not None
            gradients.append(rows.grad)
            parts = added(parts, detached(of_chunk))
        return parts, self.objective.returned(torch.cat(gradients), chunks[0].views)

    def _encode_again(self, chunk: Chunk, rows: Tensor, gradient: Tensor, is_last: bool) -> None:
        """Send the `gradient` of a chunk's h, loss scale included, backward through the encoder; `rows` is its h."""
        h = self.engine(DiffCSENetworks.encode, chunk)
        if not self._replay_is_checked:
            self._check_replay(h.detach(), rows)
        # an engine back-propagates losses only: the gradient of this one is replaced on its way
        h.register_hook(lambda _: gradient)
        if is_last:
            self.engine.set_gradient_accumulation_boundary(True)
        self._backward(h.float().sum(), chunk, touch=is_last and self._touch_last)

    def _backward(self, loss: Tensor, chunk: Chunk, touch: bool = False) -> None:
        """One backward pass; with `touch`, and where it is the first and the stage needs it, of all parameters."""
        if touch or (self._is_first_pass and self._touch_first):
            loss = loss + self.engine(DiffCSENetworks.touch, chunk)
        self._is_first_pass = False
        self.engine.backward(loss)

    def _check_replay(self, again: Tensor, before: Tensor) -> None:
        difference = torch.linalg.vector_norm(again.float() - before.float())
        if difference > REPLAY_TOLERANCE * torch.linalg.vector_norm(before.float()):
            raise InputError(
                "The encoder's second pass over a chunk differs from its first: it draws random numbers that "
                "torch.manual_seed does not set, so batch.chunk cannot be used with it; remove batch.chunk."
            )
