"""Replaced-token detection: T tokens, a tenth of them replaced, a tenth of them padding."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import replaced_token_bce
from .workload import BOTH, Implementation, Outcome, Shape, Workload, array, compared, seeded, truth_blocks


def eager(hidden: Tensor, weight: Tensor, bias: Tensor, original: Tensor, edited: Tensor, mask: Tensor) -> Tensor:
    """Without the counts. Padding gets weight zero, because selecting by `mask` would wait for the device."""
    logits = (hidden @ weight + bias).float()
    return F.binary_cross_entropy_with_logits(logits, (original != edited).float(), mask.float(), reduction="sum")


def ours(*inputs: Tensor, impl: str) -> Tensor:
    return replaced_token_bce(*inputs, impl=impl)[0]


class ReplacedTokenBCE(Workload):
    name = "replaced_token_bce"
    differentiable = 3
    counts_flop = False
    sizes = {  # noqa: RUF012
        "cuda": tuple(2**power for power in range(12, 23, 2)),
        "cpu": (4096, 16_384, 65_536),
    }
    implementations = (
        Implementation("triton", partial(ours, impl="triton"), gpu_only=True),
        Implementation("reference", partial(ours, impl="reference")),
        Implementation("eager", eager),
        Implementation("compiled", eager, compiled=True),
    )

    def shape(self, rows: int, width: int, vocabulary: int) -> Shape:
        return Shape(rows, 1, width)

    def inputs(self, shape: Shape, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
        generator = seeded(device)
        hidden = torch.randn(shape.rows, shape.width, generator=generator, dtype=dtype, device=device)
        weight = torch.randn(shape.width, generator=generator, dtype=dtype, device=device) / shape.width**0.5
        chances = torch.rand(2, shape.rows, generator=generator, device=device)
        original = torch.arange(shape.rows, device=device)
        edited = original + (chances[0] < 0.1).long()
        return hidden, weight, weight.new_zeros(1), original, edited, chances[1] < 0.9

    def flop(self, shape: Shape, passes: str) -> int:
        return (3 if passes == BOTH else 1) * 2 * shape.rows * shape.width

    def traffic(self, shape: Shape, dtype: torch.dtype, passes: str) -> int:
        """Forward reads `hidden` once, backward writes its gradient once; the rest is a thousandth of that."""
        matrix = shape.rows * shape.width * dtype.itemsize
        return 2 * matrix if passes == BOTH else matrix

    def truth(self, *inputs: Tensor) -> Outcome:
        hidden, weight, bias, original, edited, mask = inputs
        weight, bias, labels = weight.double(), bias.double(), (original != edited).double()
        loss, slopes, grad_weight = weight.new_zeros(()), torch.empty_like(labels), torch.zeros_like(weight)
        for rows in truth_blocks(*hidden.shape):
            block = hidden[rows].double()
            logits = block @ weight + bias
            # -log of the probability given to the label
            loss += torch.where(mask[rows], F.softplus((1 - 2 * labels[rows]) * logits), 0).sum()
            slopes[rows] = torch.where(mask[rows], torch.sigmoid(logits) - labels[rows], 0)
            grad_weight += slopes[rows] @ block
        grad_hidden = compared(slopes[:, None]) * weight
        return Outcome(array(loss), (array(grad_hidden), array(grad_weight), array(slopes.sum(0, keepdim=True))))
