"""InfoNCE as a module, for any trainer."""

from __future__ import annotations

import math

from torch import Tensor, full, nn

from .info_nce import info_nce
from .types import Reduction

__all__ = ["InfoNCE"]


class InfoNCE(nn.Module):
    """`info_nce` with its options chosen once; see there for what it computes, allocates and raises.

        loss = InfoNCE(temperature=0.05)(queries, keys)

    Args:
        temperature: what similarities are divided by; where `learnable`, what it is to begin with.
        learnable: make the temperature a parameter. Its logarithm is what is learnt, as in CLIP, so that it stays
            positive; no weight decay should act on it.
        hard_negative_weight: added to the logit of a row's own hard negative.
        normalize: compare by cosine (True) or by dot product.
        symmetric: average over both directions, as CLIP does.
        reduction: "mean", "sum" or "none".
        impl: "auto", "triton" or "reference".

    Raises:
        ValueError: the temperature is not a positive finite number.
    """

    def __init__(
        self,
        temperature: float = 0.05,
        *,
        learnable: bool = False,
        hard_negative_weight: float = 0.0,
        normalize: bool = True,
        symmetric: bool = False,
        reduction: Reduction = "mean",
        impl: str = "auto",
    ) -> None:
        super().__init__()
        if not (temperature > 0 and math.isfinite(temperature)):
            raise ValueError(f"temperature must be a positive finite number, not {temperature}")
        self.log_temperature = nn.Parameter(full((), math.log(temperature))) if learnable else None
        self._temperature = temperature
        self.hard_negative_weight = hard_negative_weight
        self.normalize = normalize
        self.symmetric = symmetric
        self.reduction: Reduction = reduction
        self.impl = impl

    @property
    def temperature(self) -> float | Tensor:
        """A number, or a tensor of shape [] if it is learnt."""
        return self._temperature if self.log_temperature is None else self.log_temperature.exp()

    def forward(self, queries: Tensor, keys: Tensor, hard_negatives: Tensor | None = None) -> Tensor:
        """Loss of `queries` [N, D] whose positives are the first N of `keys` [M, D]; `hard_negatives` [K, D].

        Returns:
            The loss, float32 (float64 for float64 inputs): of shape [], or [N] where reduction is "none".
        """
        return info_nce(
            queries,
            keys,
            self.temperature,
            hard_negatives=hard_negatives,
            hard_negative_weight=self.hard_negative_weight,
            normalize=self.normalize,
            symmetric=self.symmetric,
            reduction=self.reduction,
            impl=self.impl,
        )

    def extra_repr(self) -> str:
        learnt = "" if self.log_temperature is None else " (learnt)"
        return f"temperature={float(self.temperature):.4g}{learnt}, normalize={self.normalize}, impl={self.impl!r}"
