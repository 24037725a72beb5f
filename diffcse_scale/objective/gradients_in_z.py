"""Lengths and cosine of the InfoNCE and RTD gradients in z, where the two meet."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from diffcse_scale.objective.metric import Cosine, Length, Metric

OF_BATCH, OF_CHUNKS, PRODUCT = "z_gradient_contrastive", "z_gradient_rtd", "z_gradient_product"
LENGTH = Length(OF_CHUNKS, OF_BATCH)
METRICS = (
    Metric(
        "gradient_share",
        "RTD's gradient in z",
        "its length, times lambda, as a share of InfoNCE's",
        pattern="{:.2%}",
        ratio=LENGTH,
        is_logarithmic=True,
    ),
    Metric(
        "gradient_cosine",
        "Cosine of both gradients in z",
        "InfoNCE's and RTD's",
        pattern="{:.3f}",
        ratio=Cosine(PRODUCT, OF_CHUNKS, OF_BATCH),
    ),
)


class Met(NamedTuple):
    """h, [rows, H], of one share, and the gradients of both terms in z, the projection of h, [rows, H]."""

    h: Tensor
    of_batch: Tensor
    of_chunks: Tensor


class GradientsInZ:
    """Records both gradients while one backward pass goes through z; the only extra computation is three sums.

    Both are weighted as in the objective, and may include a loss scale, so only their ratios are meaningful.
    """

    def __init__(self) -> None:
        self._found: dict[str, Tensor] = {}
        self._h: Tensor | None = None

    def watch(self, h: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return z twice: for the terms on the whole batch and for the terms on chunks. z: [rows, H], from h."""
        self._h = h.detach()
        return self._watched(z, OF_BATCH), self._watched(z, OF_CHUNKS)

    def note(self, h: Tensor, of_batch: Tensor, of_chunks: Tensor) -> None:
        """Record both gradients of one share, [rows, H], if the caller knows them; h as for `watch`."""
        self._h = h.detach()
        self._found = {OF_BATCH: of_batch, OF_CHUNKS: of_chunks}

    @property
    def met(self) -> Met | None:
        """The gradients of the last backward pass, until `take` is called; None if the terms did not meet."""
        if self._h is None or len(self._found) < 2:
            return None
        return Met(self._h, self._found[OF_BATCH], self._found[OF_CHUNKS])

    def take(self) -> dict[str, Tensor]:
        """Return squared lengths and inner product from the last backward pass, 0-dim float32, and forget it.

        The result is empty if the terms did not meet."""
        found, self._found = {name: gradient.detach().float() for name, gradient in self._found.items()}, {}
        self._h = None
        if len(found) < 2:
            return {}
        sums = {name: gradient.square().sum() for name, gradient in found.items()}
        return {**sums, PRODUCT: (found[OF_BATCH] * found[OF_CHUNKS]).sum()}

    def _watched(self, z: Tensor, name: str) -> Tensor:
        view = z.view_as(z)
        if view.requires_grad:
            view.register_hook(self._keep(name))
        return view

    def _keep(self, name: str) -> Callable[[Tensor], None]:
        def keep(gradient: Tensor) -> None:
            self._found[name] = gradient

        return keep
