"""Large batches by gradient caching: only the memory of the embeddings grows with the sentences per device.

This is gradient caching (Gao et al., arXiv 2101.06983) for sums of terms, at every ZeRO stage:

1. Encode all chunks without a graph. This gives h of the whole share.
2. Project h, with a graph. This gives z.
3. For each chunk, run the terms that need networks (RTD) forward and backward. This gives the gradient of its z.
4. Run the terms on all z (InfoNCE), and go backward through the projection. This gives the gradient of h.
5. Encode each chunk again with the same random numbers (`Chunk.seed`), and send its rows' gradient backward.

Only one chunk's activations are alive at a time. Nothing is approximated. The only extra computation is the encoder's
first forward pass.

A step therefore has many backward passes and one gradient. DeepSpeed (0.19.8) reduces gradients at the end of each pass
at ZeRO-2 and 3. At ZeRO-0 and 1 it reduces them at the accumulation boundary, which is the last pass. This is correct
if every pass reaches all parameters, as in ordinary accumulation. Here most passes reach only some of them, and then

- ZeRO-3 clears its buffers in the *first* pass. If that pass does not reach a parameter, its gradient is added to the
  one of the previous step. ZeRO-2 with an offloaded optimizer does the same.
- ZeRO-1 with `overlap_comm` reduces only what the *last* pass reaches. With an offloaded optimizer, ZeRO-2 and 3 pass
  only that to the optimizer.

So, where the stage needs it, every trained parameter takes part in the first or last pass with weight 0
(`DiffCSENetworks.touch`, one row). Gradients stay sharded; inside `coalesce_grad_reduction` they would not.
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

# relative difference of embeddings: too large for bfloat16 rounding, and smaller than what another dropout mask causes
REPLAY_TOLERANCE = 0.05


class ChunkedStep:
    """Forward and backward of one global batch, chunk by chunk; the caller runs the engine's step."""

    def __init__(self, engine: Any, objective: Objective) -> None:
        self.engine, self.objective = engine, objective
        self.model: DiffCSENetworks = engine.module
        stage, offload = engine.zero_optimization_stage(), engine.zero_offload_optimizer() is not None
        self._touch_first = stage == 3 or (stage == 2 and offload)
        self._touch_last = (stage == 1 and engine.zero_overlap_comm()) or (stage >= 2 and offload)
        self._replay_is_checked = False

    def __call__(self, chunks: list[Chunk], edited: list[Tensor] | None = None) -> StepOutput:
        """Compute the same numbers and gradients as `Objective.step` and one backward pass.

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
        # DeepSpeed fails if a pass reaches no parameter
        touch = not any(parameter.requires_grad for parameter in self.model.projection.parameters())
        self._backward(self.objective.total(on_z), chunks[0], touch)
        assert h.grad is not None
        again = zip(chunks, split_rows(h.detach(), chunks), split_rows(h.grad, chunks), strict=True)
        for chunk, rows, gradient in again:
            self._encode_again(chunk, rows, gradient, is_last=chunk is chunks[-1])
        self._replay_is_checked = True
        return self.objective.output({**detached(on_z), **parts})

    def _meet(self, h: Tensor, of_batch: Tensor, of_chunks: Tensor) -> Tensor:
        """The gradient of all terms with respect to z."""
        self.objective.gradients.note(h, of_batch, of_chunks)
        return of_batch + of_chunks

    def _chunk_terms(
        self, chunks: list[Chunk], edited: Sequence[Tensor | None], z: Tensor
    ) -> tuple[Parts, Tensor | None]:
        """Run the terms that need networks, chunk by chunk.

        Returns:
            The parts of the loss, and their gradient with respect to z (times the loss scale), [n * S, H]; None if
            detached.
        """
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
        # the engine back-propagates only losses, so this loss's gradient is replaced on its way
        h.register_hook(lambda _: gradient)
        if is_last:
            self.engine.set_gradient_accumulation_boundary(True)
        self._backward(h.float().sum(), chunk, touch=is_last and self._touch_last)

    def _backward(self, loss: Tensor, chunk: Chunk, touch: bool = False) -> None:
        """One backward pass. It reaches all parameters if `touch`, or if it is the first and the stage needs that."""
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
