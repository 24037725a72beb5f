"""How much arithmetic a step needs, whoever does it, and how much the device can do."""

from __future__ import annotations

import time

import torch
from torch import nn
from transformers import PreTrainedModel

from diffcse_scale.model.generator import Generator
from diffcse_scale.model.networks import DiffCSENetworks
from diffcse_scale.text.batches import Batch


def step_flop(model: DiffCSENetworks, generator: Generator | None, batch: Batch) -> float:
    """Floating-point operations that a share of a batch cannot do without.

    Matrix products only: of real tokens; forward and backward (three times the forward) of what is trained; of the
    vocabulary head at corrupted positions only. Nothing that is computed twice counts twice.
    """
    lengths = torch.cat([chunk.attention_mask.flatten(0, 1).sum(1) for chunk in batch.chunks]).double()
    rows, views = len(lengths), batch.chunks[0].views
    width = model.encoder.backbone.config.hidden_size
    total = 3 * _body(model.encoder.backbone, lengths)
    total += 6 * rows * _linear_weights(model.projection)
    total += 6 * width * (rows / views) * batch.sentences * (views - 1)  # similarities
    if model.objective.rtd_weight > 0 and generator is not None:
        total += 3 * _body(model.discriminator.backbone, lengths) + _body(generator.model, lengths)
        corrupted = sum(len(chunk.corrupted) for chunk in batch.chunks)
        total += 2 * generator.head.weight.numel() * corrupted
    return total


def _body(network: PreTrainedModel, lengths: torch.Tensor) -> float:
    """Forward through all layers: the weights of each token, and two products of attention."""
    config = network.config
    attention = 4 * config.num_hidden_layers * config.hidden_size * lengths.square().sum()
    return float(2 * _linear_weights(network) * lengths.sum() + attention)


def _linear_weights(network: nn.Module) -> int:
    return sum(module.weight.numel() for module in network.modules() if isinstance(module, nn.Linear))


def matmul_rate(dtype: torch.dtype, device: torch.device, seconds: float = 2.0) -> float:
    """Floating-point operations a second in a large square product."""
    size = 8192 if device.type == "cuda" else 2048
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    for _ in range(2):
        left @ right
    calls, elapsed = 0, 0.0
    while elapsed < seconds:
        start = time.perf_counter()
        for _ in range(4):
            left @ right
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        elapsed += time.perf_counter() - start
        calls += 4
    return 2 * size**3 * calls / elapsed
