"""The loss on replaced tokens as plain PyTorch says it, cases, and gradients to compare."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffcse_kernels import RTDCounts, replaced_token_bce
from torch import Tensor
from torch.nn import functional as F

DEVICES = {"reference": "cpu", "triton": "cuda" if torch.cuda.is_available() else "cpu"}


def implementation(impl: str) -> Callable[..., tuple[Tensor, RTDCounts]]:
    """`replaced_token_bce` by this implementation, where it runs; takes and returns tensors on the CPU."""

    def function(**case: Tensor) -> tuple[Tensor, RTDCounts]:
        here = {name: value.to(DEVICES[impl]) for name, value in case.items()}
        loss, counts = replaced_token_bce(**here, impl=impl)
        return loss.cpu(), RTDCounts(*(count.cpu() for count in counts))

    return function


def eager_bce(
    hidden: Tensor, weight: Tensor, bias: Tensor, original_ids: Tensor, edited_ids: Tensor, mask: Tensor
) -> Tensor:
    """The same loss with logits and labels for all tokens, in the dtype of the inputs."""
    labels = (original_ids != edited_ids).to(hidden.dtype)
    losses = F.binary_cross_entropy_with_logits(hidden @ weight + bias, labels, reduction="none")
    return losses[mask].sum()


def random_case(tokens: int, width: int, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(tokens)
    return {
        "hidden": torch.randn(tokens, width, generator=generator, dtype=torch.float64).to(dtype),
        "weight": (torch.randn(width, generator=generator, dtype=torch.float64) / width**0.5).to(dtype),
        "bias": torch.tensor(0.3, dtype=dtype),
        "original_ids": torch.randint(0, 3, (tokens,), generator=generator),
        "edited_ids": torch.randint(0, 3, (tokens,), generator=generator),
        "mask": torch.rand(tokens, generator=generator) < 0.8,
    }


def loss_and_gradients(
    function: Callable[..., Any], case: dict[str, Tensor], upstream: float = 0.7
) -> tuple[Tensor, list[Tensor]]:
    leaves = {name: case[name].detach().clone().requires_grad_() for name in ("hidden", "weight", "bias")}
    result = function(**{**case, **leaves})
    loss = result if isinstance(result, Tensor) else result[0]
    return loss.detach(), list(torch.autograd.grad(loss * upstream, list(leaves.values())))


def error(value: Tensor, truth: Tensor) -> float:
    return float((value.double() - truth).norm() / truth.norm().clamp_min(1e-30))
