"""The floating-point operations of a training step."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel

from diffcse_scale.model.generator import Generator
from diffcse_scale.model.networks import DiffCSENetworks
from diffcse_scale.text.batches import Batch


class Flop(NamedTuple):
    """Floating-point operations of the forward pass and of the backward pass."""

    forward: float
    backward: float


def step_flop(model: DiffCSENetworks, generator: Generator | None, batch: Batch) -> float:
    """The floating-point operations that a share of a batch needs.

    Only matrix products count: for real tokens, and for the vocabulary head at corrupted positions. What is computed
    twice counts once.
    """
    return sum(sum(flop) for flop in part_flop(model, generator, batch).values())


def part_flop(model: DiffCSENetworks, generator: Generator | None, batch: Batch) -> dict[str, Flop]:
    """The operations of each part of the model, the generator and the loss.

    The backward pass computes gradients of inputs, which cost as much as the forward pass. The gradients of trained
    weights cost as much again.
    """
    lengths = torch.cat([chunk.attention_mask.flatten(0, 1).sum(1) for chunk in batch.chunks]).double()
    rows, views = len(lengths), batch.chunks[0].views
    width = model.encoder.backbone.config.hidden_size
    projected = 2.0 * rows * _linear_weights(model.projection)
    similarities = 2 * width * (rows / views) * batch.sentences * (views - 1)
    parts = {
        "encoder": _body(model.encoder.backbone, lengths),
        "projection": Flop(projected, 2 * projected),
        "loss": Flop(similarities, 2 * similarities),
    }
    if model.objective.rtd_weight > 0:
        parts["discriminator"] = _body(model.discriminator.backbone, lengths)
        if generator is not None:
            head = 2.0 * generator.head.weight.numel() * sum(len(chunk.corrupted) for chunk in batch.chunks)
            parts["generator"] = Flop(_body(generator.model, lengths).forward + head, 0.0)
    return parts


def _body(network: PreTrainedModel, lengths: torch.Tensor) -> Flop:
    """The operations of all layers: the weights for each token, and the two products of attention."""
    config = network.config
    attention = 4 * config.num_hidden_layers * config.hidden_size * lengths.square().sum()
    tokens = lengths.sum()
    forward = float(2 * _linear_weights(network) * tokens + attention)
    return Flop(forward, forward + float(2 * _linear_weights(network, trained=True) * tokens + attention))


def _linear_weights(network: nn.Module, trained: bool = False) -> int:
    """How many numbers the weights of linear layers hold; with `trained`, only trained weights count."""
    weights = (module.weight for module in network.modules() if isinstance(module, nn.Linear))
    return sum(weight.numel() for weight in weights if weight.requires_grad or not trained)
