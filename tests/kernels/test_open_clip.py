"""`nn.InfoNCE(symmetric=True, group=...)` is open_clip's loss. Truth: its `ClipLoss` written out, in float64, to 1e-12.

Two towers and a learnt temperature on two ranks; what is compared is what DistributedDataParallel makes of them, the
losses and gradients averaged over the ranks.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from diffcse_kernels.nn import InfoNCE
from torch import Tensor
from torch.distributed.nn.functional import all_gather
from torch.nn import functional as F

from tests.support.ranks import run_ranks

ROWS = 3  # of a rank
START = 0.07  # of the temperature
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def gathered(rows: Tensor, with_grad: bool, local_loss: bool) -> Tensor:
    if with_grad:
        return torch.cat(all_gather(rows))
    blocks = [torch.zeros_like(rows) for _ in range(dist.get_world_size())]
    dist.all_gather(blocks, rows)
    if not local_loss:
        blocks[dist.get_rank()] = rows
    return torch.cat(blocks)


def clip_loss(local_loss: bool, gather_with_grad: bool) -> Loss:
    """open_clip's loss with the options of these names."""

    def loss(images: Tensor, texts: Tensor, log_scale: Tensor) -> Tensor:
        scale = log_scale.exp()
        all_images, all_texts = (gathered(rows, gather_with_grad, local_loss) for rows in (images, texts))
        if local_loss:
            of_images, of_texts = scale * images @ all_texts.T, scale * texts @ all_images.T
        else:
            of_images = scale * all_images @ all_texts.T
            of_texts = of_images.T
        labels = torch.arange(len(of_images)) + (len(of_images) * dist.get_rank() if local_loss else 0)
        return (F.cross_entropy(of_images, labels) + F.cross_entropy(of_texts, labels)) / 2

    return loss


def ours(images: Tensor, texts: Tensor, log_scale: Tensor) -> Tensor:
    module = InfoNCE(START, learnable=True, symmetric=True, normalize=False, group="world")
    del module.log_temperature
    module.log_temperature = -log_scale  # the same parameter as theirs
    return module(images, texts)


def averaged(loss_of: Loss) -> list[Tensor]:
    """Of all ranks: the loss, and its gradients in both towers and in the logarithm of the scale."""
    generator = torch.Generator().manual_seed(5)
    images, texts, *towers = (torch.randn(6, 6, dtype=torch.float64, generator=generator) for _ in range(4))
    own = slice(ROWS * dist.get_rank(), ROWS * dist.get_rank() + ROWS)
    learnt = [*towers, torch.tensor(1 / START, dtype=torch.float64).log()]
    for parameter in learnt:
        parameter.requires_grad_()
    loss = loss_of(F.normalize(images[own] @ learnt[0]), F.normalize(texts[own] @ learnt[1]), learnt[2])
    results = [loss.detach(), *torch.autograd.grad(loss, learnt)]
    for result in results:
        dist.all_reduce(result)
    return [result / dist.get_world_size() for result in results]


def on_a_rank() -> tuple[list[Tensor], ...]:
    theirs = [clip_loss(local, with_grad) for local, with_grad in ((True, True), (False, True), (False, False))]
    return averaged(ours), *map(averaged, theirs)


def test_it_is_the_loss_of_open_clip(tmp_path: Path) -> None:
    mine, local, whole, without_grad = run_ranks(on_a_rank, 2, tmp_path)[0]
    torch.testing.assert_close(mine, local, rtol=0, atol=1e-12)
    torch.testing.assert_close(mine, whole, rtol=0, atol=1e-12)
    # without gather_with_grad their towers get 1 / W of the gradient, and the scale all of it
    loss, *towers, scale = mine
    torch.testing.assert_close([loss, *(tower / 2 for tower in towers), scale], without_grad, rtol=0, atol=1e-12)
