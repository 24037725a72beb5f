"""How near is near enough."""

from __future__ import annotations

import torch


def assert_equal(one: torch.Tensor, other: torch.Tensor, tolerance: float = 1e-9) -> None:
    # the absolute part is for what is zero but for rounding: the gradient of a key's bias
    assert float((one.detach() - other.detach()).norm()) <= tolerance * float(other.detach().norm()) + 1e-13
