"""How long the gradients of InfoNCE and of RTD are on the encoder's own parameters, and which way they point.

Both reach the encoder through z. The backward pass of a step adds them up in z, where `GradientsInZ` has seen each by
itself. Here each goes on alone: through the projection, and, chunk by chunk, through the encoder, which computes again
what it computed in the step, with the same random numbers. That is two forward and two backward passes of the encoder.
Nothing that training uses is changed: no `grad` is written, and BatchNorm's running statistics are put back.

Whole parameters are needed, which ZeRO-0 alone has while it computes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from diffcse_scale.distributed import Ranks, all_sum
from diffcse_scale.model.networks import DiffCSENetworks, split_rows
from diffcse_scale.objective.gradients_in_z import GradientsInZ
from diffcse_scale.objective.metric import Cosine, Length, Metric
from diffcse_scale.text.batches import Chunk

OF_BATCH, OF_CHUNKS, PRODUCT = NAMES = tuple(f"parameter_gradient_{of}" for of in ("contrastive", "rtd", "product"))
METRICS = (
    Metric(
        "parameter_share",
        "RTD's gradient in the encoder's parameters",
        "its length, times lambda, as a share of InfoNCE's",
        pattern="{:.2%}",
        ratio=Length(OF_CHUNKS, OF_BATCH),
        is_logarithmic=True,
    ),
    Metric(
        "parameter_cosine",
        "Cosine of both gradients in the encoder's parameters",
        "InfoNCE's and RTD's",
        pattern="{:.3f}",
        ratio=Cosine(PRODUCT, OF_CHUNKS, OF_BATCH),
    ),
)


def gradients_in_parameters(
    networks: DiffCSENetworks, chunks: list[Chunk], seen: GradientsInZ, ranks: Ranks
) -> dict[str, Tensor]:
    """Squared lengths and inner product of the global batch's two gradients, 0-dim, the same on every rank.

    Called on every rank, after the backward pass of a step and before `seen` is told. Ranks add up their gradients
    before lengths are taken, as an engine does. Both are weighted as in the objective, and may be scaled by a loss
    scale and by the number of ranks: only ratios are meant.

    Args:
        networks: with the weights of that step, in the mode of training, and with whole parameters.
        chunks: this rank's share in that step.

    Returns:
        by the names of `NAMES`; nothing where the terms did not meet.
    """
    met = seen.met
    if met is None:
        return {}
    parameters = [parameter for parameter in networks.encoder.backbone.parameters() if parameter.requires_grad]
    totals = []
    for in_h in _in_h(networks.projection, met.h, (met.of_batch, met.of_chunks)):
        total: list[Tensor] = []
        for chunk, rows in zip(chunks, split_rows(in_h, chunks), strict=True):
            h = networks.encode(chunk)
            own = torch.autograd.grad(h, parameters, rows.to(h.dtype), materialize_grads=True)
            total = [one + other for one, other in zip(total, own, strict=True)] if total else list(own)
        totals.append([all_sum(gradient, ranks) for gradient in total])
    pairs = zip(totals[0], totals[1], strict=True)
    sums = [
        torch.stack([(a * a).sum(), (b * b).sum(), (a * b).sum()]) for a, b in ((_wide(a), _wide(b)) for a, b in pairs)
    ]
    return dict(zip(NAMES, torch.stack(sums).sum(0).unbind(), strict=True))


def _in_h(projection: nn.Module, h: Tensor, in_z: tuple[Tensor, ...]) -> list[Tensor]:
    """Gradients in h, [rows, H], from those in z."""
    h = h.detach().requires_grad_()
    with _buffers_kept(projection):
        z = projection(h)
    return [torch.autograd.grad(z, h, gradient, retain_graph=True)[0] for gradient in in_z]


@contextmanager
def _buffers_kept(module: nn.Module) -> Iterator[None]:
    """Inside, `module` may update running statistics; afterwards they are what they were."""
    before = [buffer.clone() for buffer in module.buffers()]
    yield
    for buffer, value in zip(module.buffers(), before, strict=True):
        buffer.copy_(value)


def _wide(gradient: Tensor) -> Tensor:
    return gradient.to(torch.promote_types(gradient.dtype, torch.float32))
