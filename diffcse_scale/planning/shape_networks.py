"""The recipe's networks on tensors without data, and the sizes of their parameters."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from deepspeed.runtime.torch_autocast import LOWER_PRECISION_SAFE_MODULES
from torch import nn

from diffcse_scale.model.backbone import load_tokenizers, without_weights
from diffcse_scale.model.build import build_model
from diffcse_scale.model.generator import Generator, load_generator
from diffcse_scale.model.networks import DiffCSENetworks
from diffcse_scale.recipe import Recipe


@dataclass(frozen=True)
class Parameter:
    """One parameter of the trained model."""

    name: str  # starts with its part: encoder, projection, discriminator, rtd_head
    elements: int
    dimensions: int
    trained: bool
    autocast: bool  # in a module that autocast runs in reduced precision, according to DeepSpeed's list
    lookup: bool = False  # in an embedding: no gradient passes through its input
    itemsize: int = 4  # bytes per element as loaded

    @property
    def part(self) -> str:
        """Which network it belongs to."""
        return self.name.partition(".")[0]


@dataclass(frozen=True)
class Networks:
    """The networks of a run, on the meta device."""

    model: DiffCSENetworks
    generator: Generator | None
    parameters: list[Parameter]  # in the engine's order
    generator_elements: int
    width: int  # width of a sentence embedding

    def elements(self, part: str | None = None, trained: bool | None = None) -> int:
        """Number of elements in all parameters, or only in one part, or only in trained (or frozen) parameters."""
        return sum(
            parameter.elements
            for parameter in self.parameters
            if part in (None, parameter.part) and trained in (None, parameter.trained)
        )


def load_networks(recipe: Recipe) -> Networks:
    """Build the recipe's networks from their configurations, without reading weights.

    Raises:
        InputError: training would refuse the recipe too: unknown models, other vocabularies, too long sentences.
    """
    tokenizers = load_tokenizers(recipe.model)
    # a checkpoint replaces initial weights but changes no size
    recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update={"checkpoint": None})})
    with without_weights():
        model = build_model(recipe, tokenizers)
        generator = load_generator(recipe, tokenizers, torch.device("meta"))
    elements = 0 if generator is None else sum(p.numel() for p in _generator_parameters(generator))
    width = model.encoder.backbone.config.hidden_size
    return Networks(model.train(), generator, parameters_of(model), elements, width)


def _generator_parameters(generator: Generator) -> list[nn.Parameter]:
    """Parameters of the body and of the vocabulary head, which the generator holds separately; tied ones once."""
    return list(dict.fromkeys([*generator.model.parameters(), *generator.head.parameters()]))


def parameters_of(model: nn.Module) -> list[Parameter]:
    """Parameters of a model on any device, including meta."""
    in_autocast, in_lookup = set(), set()
    for module in model.modules():
        own = {id(p) for p in module.parameters(recurse=False)}
        if type(module) in LOWER_PRECISION_SAFE_MODULES:  # DeepSpeed's list does not apply to subclasses
            in_autocast |= own
        if isinstance(module, nn.Embedding):
            in_lookup |= own
    return [
        Parameter(name, p.numel(), p.ndim, p.requires_grad, id(p) in in_autocast, id(p) in in_lookup, p.element_size())
        for name, p in model.named_parameters()
    ]
