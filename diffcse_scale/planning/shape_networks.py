"""The recipe's networks on tensors without numbers, and the sizes of their parameters."""

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

    name: str  # the first word is its part: encoder, projection, discriminator, rtd_head
    elements: int
    dimensions: int
    trained: bool
    autocast: bool  # of a module whose products autocast makes in reduced precision, by DeepSpeed's list
    lookup: bool = False  # of an embedding: no gradient goes through it
    itemsize: int = 4  # bytes of a number as it is loaded

    @property
    def part(self) -> str:
        """Which network it belongs to."""
        return self.name.partition(".")[0]


@dataclass(frozen=True)
class Networks:
    """What a run holds, on the meta device."""

    model: DiffCSENetworks
    generator: Generator | None
    parameters: list[Parameter]  # in the order in which the engine has them
    generator_elements: int
    width: int  # of a sentence embedding

    def elements(self, part: str | None = None, trained: bool | None = None) -> int:
        """Numbers in all parameters, or those of one part, or only in the trained (or the frozen) ones."""
        return sum(
            parameter.elements
            for parameter in self.parameters
            if part in (None, parameter.part) and trained in (None, parameter.trained)
        )


def load_networks(recipe: Recipe) -> Networks:
    """Build the recipe's networks from their configurations; no weight is read.

    Raises:
        InputError: what training itself would refuse: unknown models, other vocabularies, too long sentences.
    """
    tokenizers = load_tokenizers(recipe.model)
    # weights that replace the initial ones change no size
    recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update={"checkpoint": None})})
    with without_weights():
        model = build_model(recipe, tokenizers)
        generator = load_generator(recipe, tokenizers, torch.device("meta"))
    elements = 0 if generator is None else sum(p.numel() for p in _generator_parameters(generator))
    width = model.encoder.backbone.config.hidden_size
    return Networks(model.train(), generator, parameters_of(model), elements, width)


def _generator_parameters(generator: Generator) -> list[nn.Parameter]:
    """Those of the body and of the vocabulary head, which the generator took out; tied ones once."""
    return list(dict.fromkeys([*generator.model.parameters(), *generator.head.parameters()]))


def parameters_of(model: nn.Module) -> list[Parameter]:
    """Those of a model that is built, on the meta device or another."""
    in_autocast, in_lookup = set(), set()
    for module in model.modules():
        own = {id(p) for p in module.parameters(recurse=False)}
        if type(module) in LOWER_PRECISION_SAFE_MODULES:  # a class derived from one of them is none
            in_autocast |= own
        if isinstance(module, nn.Embedding):
            in_lookup |= own
    return [
        Parameter(name, p.numel(), p.ndim, p.requires_grad, id(p) in in_autocast, id(p) in in_lookup, p.element_size())
        for name, p in model.named_parameters()
    ]
