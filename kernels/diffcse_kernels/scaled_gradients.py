"""How backward scales gradients that the forward pass has computed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


@torch.library.custom_op("diffcse_kernels::scaled_gradient", mutates_args=())
def _scaled_gradient(gradient: Tensor, upstream: Tensor, dtype: torch.dtype) -> Tensor:
    """(gradient * upstream).to(dtype), without storing the product in the gradient's own dtype.

    The product comes before the conversion, because half-precision gradients would underflow before a loss scale is
    applied. This is a separate operator without a derivative, because the loss has no second derivative.
    """
    return torch.mul(gradient, upstream, out=torch.empty_like(gradient, dtype=dtype))


@_scaled_gradient.register_fake
def _(gradient: Tensor, upstream: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.empty_like(gradient, dtype=dtype)


def scaled_gradients(
    kept: Sequence[Tensor],
    upstream: Tensor | None,
    needs: Sequence[bool],
    forms: Sequence[tuple[torch.dtype, torch.Size]],
) -> list[Tensor | None]:
    """The inputs' gradients, `kept` times `upstream` in each input's dtype and shape; None if not needed."""
    return [
        _scaled_gradient(gradient, upstream, dtype).reshape(shape) if needed and upstream is not None else None
        for gradient, needed, (dtype, shape) in zip(kept, needs, forms, strict=True)
    ]
