"""The layers of networks through torch.compile."""

from __future__ import annotations

import os
import shutil
from typing import Any

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from diffcse_scale.foundation.errors import InputError
from diffcse_scale.model.generator import Generator
from diffcse_scale.model.networks import DiffCSENetworks

COMPILERS = ("g++", "clang++", "c++")
# torch keeps the programs of all classes of layers, with and without padding, with and without a graph, in one list
MOST_PROGRAMS = 32


def has_compiler() -> bool:
    """Whether torch.compile finds a C++ compiler: that of $CXX if it is set."""
    asked = os.environ.get("CXX")
    return any(map(shutil.which, [asked] if asked else COMPILERS))


def check_compile(zero_stage: int) -> None:
    """Raises InputError where ZeRO-3 partitions layers, or torch.compile would find no C++ compiler."""
    if zero_stage == 3:
        raise InputError("model.compile needs whole layers, which ZeRO-3 partitions; use a stage below 3.")
    if not has_compiler():
        raise InputError(
            f"model.compile needs a C++ compiler, and there is no {os.environ.get('CXX') or COMPILERS[0]} here; "
            "install one, or leave model.compile out."
        )


def compile_networks(model: DiffCSENetworks, generator: Generator | None) -> None:
    """Compile the layers of all backbones; they are compiled when they are first called.

    One program serves all layers of a kind, and any number of sentences and tokens. Dropout draws eager mode's numbers,
    so that results are eager mode's to rounding, and a layer that is computed again draws what it drew before.

    Raises:
        InputError: the layers of a family are not known as such.
    """
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, MOST_PROGRAMS)
    trained = [model.encoder.backbone]
    if model.objective.rtd_weight > 0:
        trained.append(model.discriminator.backbone)
    for backbone in trained:
        for layer in _layers(backbone):
            # what evaluation calls with other shapes and without dropout stays as it is
            _compile(layer, training_only=True)
    if generator is not None:
        for layer in _layers(generator.model):
            _compile(layer, training_only=False)


def _layers(network: nn.Module) -> list[nn.Module]:
    layers = [module for module in network.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise InputError(f"The layers of {type(network).__name__} cannot be compiled; leave model.compile out.")
    return layers


def _compile(layer: nn.Module, training_only: bool) -> None:
    # `forward` and not the module: hooks, such as the discriminator's that puts z in its place, stay outside
    plain = layer.forward
    compiled = torch.compile(plain, dynamic=True, options={"fallback_random": True})

    def forward(*arguments: Any, **options: Any) -> Any:
        return (compiled if layer.training or not training_only else plain)(*arguments, **options)

    layer.forward = forward
