"""InfoNCE: N queries against N keys, mean loss, cosine similarity, at temperatures of 0.05 and of 0.01."""

from __future__ import annotations

from functools import partial
from importlib import import_module
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from .. import info_nce
from .workload import BOTH, Implementation, Outcome, Shape, Workload, array, compared_rows, seeded, truth_blocks

TEMPERATURE = 0.05
LOW_TEMPERATURE = 0.01  # CLIP's lowest
CHUNK_BYTES = 64 * 2**20  # the chunked baseline holds this many bytes of float32 logits at once


def eager(queries: Tensor, keys: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """One matrix product and a cross-entropy. Scaling the queries, not the logits, saves a pass over the matrix."""
    queries, keys, targets = _normalized(queries, keys, temperature)
    return F.cross_entropy((queries @ keys.T).float(), targets)


def masked(queries: Tensor, keys: Tensor, impl: str) -> Tensor:
    """With ids and a margin that exclude nothing, to measure the cost of the masks."""
    ids = torch.arange(len(queries), device=queries.device)
    return info_nce(queries, keys, TEMPERATURE, query_ids=ids, key_ids=ids, margin=2.0, impl=impl)


def chunked(queries: Tensor, keys: Tensor) -> Tensor:
    """One block of rows at a time; backward computes the logits again."""
    queries, keys, targets = _normalized(queries, keys)
    height = max(256, CHUNK_BYTES // (4 * len(keys)))
    losses = [
        checkpoint(_block_loss, *block, keys, use_reentrant=False)
        for block in zip(queries.split(height), targets.split(height), strict=True)
    ]
    return torch.stack(losses).sum() / len(queries)


def _block_loss(queries: Tensor, targets: Tensor, keys: Tensor) -> Tensor:
    return F.cross_entropy((queries @ keys.T).float(), targets, reduction="sum")


def broadcast(queries: Tensor, keys: Tensor) -> Tensor:
    """The form in the official SimCSE and DiffCSE programs: all pairs of rows side by side, N x N x D numbers."""
    cosines = F.cosine_similarity(queries[:, None], keys[None], dim=-1)
    return F.cross_entropy((cosines / TEMPERATURE).float(), torch.arange(len(queries), device=queries.device))


def cut_cross_entropy(queries: Tensor, keys: Tensor, **options: None) -> Tensor:
    """https://github.com/apple/ml-cross-entropy, with the keys as the classifier."""
    loss: Tensor = import_module("cut_cross_entropy").linear_cross_entropy(*_normalized(queries, keys), **options)
    return loss


def liger(queries: Tensor, keys: Tensor) -> Tensor:
    """https://github.com/linkedin/Liger-Kernel, fused linear cross-entropy, with the keys as the classifier."""
    functions = import_module("liger_kernel.transformers.functional")
    loss: Tensor = functions.liger_fused_linear_cross_entropy(*_normalized(queries, keys))
    return loss


def inf_cl(queries: Tensor, keys: Tensor) -> Tensor:
    """https://github.com/DAMO-NLP-SG/Inf-CLIP, in float32; it needs a divisor of the width that is at most 256."""
    width = queries.shape[1]
    divisor = min(256, width & -width)  # the largest power of two that divides the width
    loss: Tensor = import_module("inf_cl").cal_inf_loss(*_normalized(queries, keys), head_dim=divisor)
    return loss


def _normalized(queries: Tensor, keys: Tensor, temperature: float = TEMPERATURE) -> tuple[Tensor, Tensor, Tensor]:
    """Normalised keys, queries scaled so that the products are the logits, and each row's positive column."""
    targets = torch.arange(len(queries), device=queries.device)
    return F.normalize(queries) / temperature, F.normalize(keys), targets


class InfoNCE(Workload):
    name = "info_nce"
    temperature: ClassVar[float] = TEMPERATURE
    differentiable = 2
    sizes = {  # noqa: RUF012
        "cuda": tuple(2**power for power in range(9, 21)),
        "cpu": (512, 1024, 2048, 4096, 8192),
    }
    implementations: ClassVar[tuple[Implementation, ...]] = (
        Implementation("triton", partial(info_nce, temperature=TEMPERATURE, impl="triton"), gpu_only=True),
        Implementation("reference", partial(info_nce, temperature=TEMPERATURE, impl="reference")),
        Implementation("triton-masked", partial(masked, impl="triton"), gpu_only=True),
        Implementation("reference-masked", partial(masked, impl="reference")),
        Implementation("eager", eager),
        Implementation("compiled", eager, compiled=True),
        Implementation("chunked", chunked),
        Implementation("broadcast", broadcast),
        Implementation("cce", cut_cross_entropy, gpu_only=True, package="cut_cross_entropy"),
        # by default cce drops the gradients of small probabilities, which are most of them in a large batch
        Implementation(
            "cce-unfiltered",
            partial(cut_cross_entropy, filter_eps=None),
            gpu_only=True,
            package="cut_cross_entropy",
        ),
        Implementation("liger", liger, gpu_only=True, package="liger_kernel"),
        Implementation("inf-cl", inf_cl, gpu_only=True, package="inf_cl"),
    )

    def shape(self, rows: int, width: int, vocabulary: int) -> Shape:
        return Shape(rows, rows, width)

    def inputs(self, shape: Shape, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
        """Random directions, with each key at about 45 degrees to its query, as in the middle of training."""
        generator = seeded(device)
        queries = torch.randn(shape.rows, shape.width, generator=generator, dtype=dtype, device=device)
        noise = torch.randn(shape.columns, shape.width, generator=generator, dtype=dtype, device=device)
        return queries, noise.add_(queries)

    def flop(self, shape: Shape, passes: str) -> int:
        products = 3 if passes == BOTH else 1
        return products * 2 * shape.rows * shape.columns * shape.width

    def traffic(self, shape: Shape, dtype: torch.dtype, passes: str) -> int:
        matrices = (shape.rows + shape.columns) * shape.width * dtype.itemsize
        return 2 * matrices if passes == BOTH else matrices

    def truth(self, *inputs: Tensor) -> Outcome:
        """Loss and gradients from the written-out derivatives; the gradients only at the compared rows."""
        (queries, query_norms), (keys, key_norms) = (unit_rows(rows.double()) for rows in inputs)
        scaled = queries / self.temperature
        totals = torch.cat(
            [torch.logsumexp(scaled[rows] @ keys.T, dim=1) for rows in truth_blocks(len(queries), len(keys))]
        )
        loss = (totals - torch.linalg.vecdot(scaled, keys)).mean()

        chosen = compared_rows(len(queries), queries.device)
        diagonal = torch.arange(len(chosen), device=chosen.device)
        by_query = torch.exp(scaled[chosen] @ keys.T - totals[chosen, None])
        by_query[diagonal, chosen] -= 1
        by_key = torch.exp(keys[chosen] @ scaled.T - totals)
        by_key[diagonal, chosen] -= 1
        factor = 1 / (self.temperature * len(queries))
        gradients = (
            factor * tangent(by_query @ keys, queries[chosen]) / query_norms[chosen],
            factor * tangent(by_key @ queries, keys[chosen]) / key_norms[chosen],
        )
        return Outcome(array(loss), tuple(map(array, gradients)))


class ColdInfoNCE(InfoNCE):
    """A temperature at which exponentials leave the range of float32, so a kernel may need more passes."""

    name = "info_nce_cold"
    temperature = LOW_TEMPERATURE
    implementations = (
        Implementation("triton", partial(info_nce, temperature=LOW_TEMPERATURE, impl="triton"), gpu_only=True),
        Implementation("reference", partial(info_nce, temperature=LOW_TEMPERATURE, impl="reference")),
        Implementation("eager", partial(eager, temperature=LOW_TEMPERATURE)),
    )


def unit_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return rows / norms, norms


def tangent(gradient: Tensor, unit: Tensor) -> Tensor:
    """Remove the component along the row, because normalisation makes the loss independent of it."""
    return gradient - unit * torch.linalg.vecdot(unit, gradient)[:, None]
