"""Compile the layers of networks with torch.compile."""

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
# torch counts the programs of all layer classes, with and without padding and with and without a graph, in one list
MOST_PROGRAMS = 32


def has_compiler() -> bool:
    """Whether torch.compile finds a C++ compiler; if $CXX is set, only this one counts."""
    asked = os.environ.get("CXX")
    return any(map(shutil.which, [asked] if asked else COMPILERS))


def check_compile(zero_stage: int) -> None:
    """Raise InputError if ZeRO-3 partitions the layers, or if torch.compile would find no C++ compiler."""
    if zero_stage == 3:
        raise InputError("model.compile needs whole layers, which ZeRO-3 partitions; use a stage below 3.")
    if not has_compiler():
        raise InputError(
            f"model.compile needs a C++ compiler, and there is no {os.environ.get('CXX') or COMPILERS[0]} here; "
            "install one, or leave model.compile out."
        )


def compile_networks(model: DiffCSENetworks, generator: Generator | None) -> None:
    """Compile the layers of all backbones; the compilation happens at the first call.

    One program serves all layers of a kind, for any number of sentences and tokens. Dropout draws the same numbers as
    eager mode. Results therefore equal eager mode up to rounding, and a recomputed layer draws the same numbers again.

    Raises:
        InputError: the layers of a model family cannot be found.
    """
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, MOST_PROGRAMS)
    trained = [model.encoder.backbone]
    if model.objective.rtd_weight > 0:
        trained.append(model.discriminator.backbone)
    for backbone in trained:
        for layer in _layers(backbone):
            # evaluation has other shapes and no dropout, so it runs uncompiled
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
    # compile `forward`, not the module, so that hooks stay outside, such as the discriminator's hook that inserts z
    plain = layer.forward
    compiled = torch.compile(plain, dynamic=True, options={"fallback_random": True})

    def forward(*arguments: Any, **options: Any) -> Any:
        return (compiled if layer.training or not training_only else plain)(*arguments, **options)

    layer.forward = forward
