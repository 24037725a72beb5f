"""Sampling one token for each of T hidden states from a vocabulary of size V; forward only."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from torch import Tensor

from .. import counter_uniform, sample_tokens
from .workload import FORWARD, Implementation, Outcome, Shape, Workload, array, compared_rows, seeded

SEED = 0


def eager(hidden: Tensor, embedding: Tensor, bias: Tensor, positions: Tensor) -> Tensor:
    """The logits, their softmax, and a draw from it."""
    return torch.multinomial(_logits(hidden, embedding, bias).softmax(dim=1), 1)[:, 0]


def gumbel(hidden: Tensor, embedding: Tensor, bias: Tensor, positions: Tensor) -> Tensor:
    """The largest logit after adding Gumbel noise to each: no softmax, but T x V random numbers."""
    logits = _logits(hidden, embedding, bias)
    return (logits - torch.empty_like(logits).exponential_().log()).argmax(dim=1)


def _logits(hidden: Tensor, embedding: Tensor, bias: Tensor) -> Tensor:
    return (hidden @ embedding.T + bias).float()


class SampleTokens(Workload):
    name = "sample_tokens"
    passes = (FORWARD,)
    sizes = {  # noqa: RUF012
        "cuda": tuple(2**power for power in range(9, 18)),
        "cpu": (256, 1024),
    }
    implementations = (
        Implementation("triton", partial(sample_tokens, seed=SEED, impl="triton"), gpu_only=True),
        Implementation("reference", partial(sample_tokens, seed=SEED, impl="reference")),
        Implementation("eager", eager, comparable=False),
        Implementation("gumbel", gumbel, comparable=False),
        Implementation("compiled", eager, compiled=True, comparable=False),
        Implementation("compiled-gumbel", gumbel, compiled=True, comparable=False),
    )

    def shape(self, rows: int, width: int, vocabulary: int) -> Shape:
        return Shape(rows, vocabulary, width)

    def inputs(self, shape: Shape, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
        """Inputs that give logits with a standard deviation of 3; a few tokens take most of the probability."""
        generator = seeded(device)
        hidden = torch.randn(shape.rows, shape.width, generator=generator, dtype=dtype, device=device)
        embedding = torch.randn(shape.columns, shape.width, generator=generator, dtype=dtype, device=device)
        bias = torch.randn(shape.columns, generator=generator, dtype=dtype, device=device)
        return hidden, embedding.mul_(3 / shape.width**0.5), bias, torch.arange(shape.rows, device=device)

    def flop(self, shape: Shape, passes: str) -> int:
        return 2 * shape.rows * shape.columns * shape.width

    def traffic(self, shape: Shape, dtype: torch.dtype, passes: str) -> int:
        matrices = (shape.rows + shape.columns) * shape.width * dtype.itemsize
        return matrices + shape.columns * dtype.itemsize + 2 * 8 * shape.rows  # bias, positions, ids

    def truth(self, *inputs: Tensor) -> Outcome:
        """The tokens of the compared rows, drawn with their uniform numbers."""
        hidden, embedding, bias, positions = inputs
        chosen = compared_rows(len(hidden), hidden.device)
        logits = hidden[chosen].double() @ embedding.double().T + bias.double()
        cumulative = logits.softmax(dim=1).cumsum(dim=1)
        targets = counter_uniform(SEED, positions[chosen])[:, None] * cumulative[:, -1:]
        return Outcome(array(torch.searchsorted(cumulative, targets, right=True)[:, 0]), ())

    def outcome(self, value: Tensor, gradients: tuple[Tensor, ...]) -> Outcome:
        return Outcome(array(value[compared_rows(len(value), value.device)]), ())

    def errors(self, found: Outcome, truth: Outcome) -> tuple[float, None]:
        """The share of the compared rows whose token differs."""
        return float(np.mean(found.value != truth.value)), None
