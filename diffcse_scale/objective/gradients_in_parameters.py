"""Lengths and cosine of the InfoNCE and RTD gradients in the encoder's own parameters.

Both gradients reach the encoder through z. The backward pass of a step sums them in z, where `GradientsInZ` has
recorded each of them. Here each is back-propagated separately: through the projection, then chunk by chunk through the
encoder. The encoder repeats the computation of the step with the same random numbers. This takes two forward and two
backward passes of the encoder. Training is not affected: no `grad` is written, and BatchNorm's running statistics are
restored.

This needs whole parameters, which are available during computation only with ZeRO-0.
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

    Call this on every rank, after the backward pass of a step and before `seen.take()`. Gradients are summed over ranks
    before lengths are computed, as an engine does. Both are weighted as in the objective, and may include a loss scale
    and the number of ranks as factors, so only their ratios are meaningful.

    Args:
        networks: with the weights of that step, in training mode, with whole parameters.
        chunks: this rank's share in that step.

    Returns:
        The values by the names in `NAMES`; empty if the terms did not meet.
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
    """The gradients in h, [rows, H], from the gradients in z."""
    h = h.detach().requires_grad_()
    with _buffers_kept(projection):
        z = projection(h)
    return [torch.autograd.grad(z, h, gradient, retain_graph=True)[0] for gradient in in_z]


@contextmanager
def _buffers_kept(module: nn.Module) -> Iterator[None]:
    """Restore the module's buffers, such as running statistics, on exit."""
    before = [buffer.clone() for buffer in module.buffers()]
    yield
    for buffer, value in zip(module.buffers(), before, strict=True):
        buffer.copy_(value)


def _wide(gradient: Tensor) -> Tensor:
    return gradient.to(torch.promote_types(gradient.dtype, torch.float32))
