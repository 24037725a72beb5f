"""The projection z = p(h), which is used only in training.

`mlp` is SimCSE's head. `batchnorm` is DiffCSE's head (section 4 of the paper, `--batchnorm` in the official program).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from diffcse_scale.distributed import PROCESS_GROUP, Ranks, sum_over_ranks


class GlobalBatchNorm(nn.BatchNorm1d):
    """`BatchNorm1d` with the statistics of the global batch, on any device, with exact gradients.

    Ranks add up their counts, sums and sums of squares in one differentiable exchange. Its size does not depend on the
    number of ranks. Each rank sums squares around its own mean, so nothing cancels. The squares of the means are added
    and later subtracted in float64, which preserves the differences that float32 rows can represent. (`SyncBatchNorm`
    does not support CPUs.) It computes in at least float32, whatever the precision of the run.

    Args:
        ranks: the ranks whose rows form the batch.
        affine: as in `BatchNorm1d`.
    """

    def __init__(self, width: int, affine: bool = True, ranks: Ranks = PROCESS_GROUP) -> None:
        super().__init__(width, affine=affine)
        self.ranks = ranks

    def forward(self, input: Tensor) -> Tensor:
        """input: [rows, C], any float dtype; returns [rows, C] in at least float32."""
        with torch.autocast(input.device.type, enabled=False):
            rows = input.to(torch.promote_types(input.dtype, torch.float32))
            if self.training:
                mean, variance = self._batch_statistics(rows)
            else:
                assert self.running_mean is not None and self.running_var is not None
                mean, variance = self.running_mean.to(rows.dtype), self.running_var.to(rows.dtype)
            normal = (rows - mean) * torch.rsqrt(variance + self.eps)
            if self.affine:
                normal = normal * self.weight.to(rows.dtype) + self.bias.to(rows.dtype)
            return normal

    def _batch_statistics(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        own = rows.mean(0)
        deviation, own = (rows - own).square().sum(0).double(), own.double()
        count = own.new_full((1,), rows.shape[0])
        sums = sum_over_ranks(torch.cat([count, count * own, deviation + count * own.square()]), self.ranks)
        total, mean, squares = sums.split([1, len(own), len(own)])
        mean = mean / total
        deviation = (squares - total * mean.square()).clamp(min=0)
        self._update_running(mean.detach(), deviation.detach() / (total - 1).clamp(min=1))
        return mean.to(rows.dtype), (deviation / total).to(rows.dtype)

    @torch.no_grad()
    def _update_running(self, mean: Tensor, unbiased_variance: Tensor) -> None:
        assert self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None and self.momentum is not None
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
        self.running_var.lerp_(unbiased_variance.to(self.running_var.dtype), self.momentum)
        self.num_batches_tracked += 1


class MLPProjection(nn.Module):
    """Linear and tanh, from width H to H."""

    def __init__(self, width: int, initializer_range: float = 0.02) -> None:
        super().__init__()
        self.dense = nn.Linear(width, width)
        nn.init.normal_(self.dense.weight, std=initializer_range)
        nn.init.zeros_(self.dense.bias)

    def forward(self, embeddings: Tensor) -> Tensor:
        """[rows, H] to [rows, H]."""
        return torch.tanh(self.dense(embeddings.to(self.dense.weight.dtype)))


class BatchNormProjection(nn.Module):
    """Linear(H, 2H) - BatchNorm - ReLU - Linear(2H, H) - BatchNorm without affine, from width H to H.

    Args:
        in_float32: if True, z keeps the dtype of the last BatchNorm, at least float32; if False, it gets the dtype in
            which the linear layers compute.
    """

    def __init__(
        self,
        width: int,
        initializer_range: float = 0.02,
        ranks: Ranks = PROCESS_GROUP,
        in_float32: bool = True,
    ) -> None:
        super().__init__()
        self.in_float32 = in_float32
        self.net = nn.Sequential(
            nn.Linear(width, 2 * width, bias=False),
            GlobalBatchNorm(2 * width, ranks=ranks),
            nn.ReLU(),
            nn.Linear(2 * width, width, bias=False),
            GlobalBatchNorm(width, affine=False, ranks=ranks),
        )
        for layer in (self.net[0], self.net[3]):
            nn.init.normal_(layer.weight, std=initializer_range)  # type: ignore[arg-type]

    def forward(self, embeddings: Tensor) -> Tensor:
        """[rows, H] to [rows, H]; the rows of all views form one batch, as in the official program."""
        hidden, computed_in = embeddings, embeddings.dtype
        for layer in self.net:
            if isinstance(layer, nn.Linear):
                # GlobalBatchNorm returns float32, but the linear layers of a bfloat16 model need their own dtype
                hidden = layer(hidden.to(layer.weight.dtype))
                computed_in = hidden.dtype
            else:
                hidden = layer(hidden)
        return hidden if self.in_float32 else hidden.to(computed_in)


def make_projection(
    kind: str,
    width: int,
    initializer_range: float = 0.02,
    ranks: Ranks = PROCESS_GROUP,
    in_float32: bool = True,
) -> nn.Module:
    """`batchnorm`, `mlp` or `none`, of width H; `ranks` share the batch; `in_float32`: as in `BatchNormProjection`."""
    if kind == "batchnorm":
        return BatchNormProjection(width, initializer_range, ranks, in_float32)
    return MLPProjection(width, initializer_range) if kind == "mlp" else nn.Identity()
