"""Extrapolates a deep network from two shallow ones. Layers are equal, so memory is linear in the depth."""

from __future__ import annotations

import re
from itertools import groupby
from typing import NamedTuple

from torch import nn

from diffcse_scale.planning.moments import Moment, along

SHALLOW = 4  # layers: the first, one in between, the one below the last, the last
_NUMBER = re.compile(r"(layer|module)_(idx|id|index)")  # the only setting in which equal layers differ


class Stacks(NamedTuple):
    """The deepest stacks of equal layers that a model has."""

    names: list[str]
    depth: int


def equal_layers(model: nn.Module) -> Stacks | None:
    """The deepest stacks whose layers are equal except the first; None if the model is too shallow to gain."""
    depths = {
        name: len(module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList)
        and len(module) > SHALLOW + 2
        and len({_form(layer) for layer in module[1:]}) == 1
    }
    deepest = max(depths.values(), default=0)
    return Stacks([name for name, depth in depths.items() if depth == deepest], deepest) if depths else None


def cut(model: nn.Module, stacks: Stacks, depth: int) -> None:
    """Keep only the first `depth` layers of each stack."""
    for name in stacks.names:
        parent, _, child = name.rpartition(".")
        layers = model.get_submodule(name)
        assert isinstance(layers, nn.ModuleList)
        setattr(model.get_submodule(parent), child, layers[:depth])


def deepened(shallow: list[Moment], deeper: list[Moment], stacks: Stacks) -> list[Moment]:
    """The step of the whole model, extrapolated from steps with `SHALLOW` and with `SHALLOW` + 1 layers.

    A backward pass goes from the last layer of a stack to the first. The memory in use grows with the number of
    layers, and with the number of layers that the pass has not reached yet.
    """
    more = stacks.depth - SHALLOW
    moments: list[Moment] = []
    for (name, few), (_, many) in zip(_blocks(shallow, stacks), _blocks(deeper, stacks), strict=True):
        if name is None:
            moments += _line([more], few[0], [many[0]])
            continue
        last, below, between, first = few
        many_last, many_below, many_upper, many_between, many_first = many
        layers = [_line([more], last, [many_last]), _line([more], below, [many_below])]
        for number in range(stacks.depth - 3, 0, -1):
            layers.append(_line([more - (number - 1), number - 1], between, [many_between, many_upper]))
        layers.append(_line([more], first, [many_first]))
        for number, layer in zip(range(stacks.depth - 1, -1, -1), layers, strict=True):
            moments += [_in_layer(moment, name, number) for moment in layer]
    return moments


def _line(steps: list[float], base: list[Moment], others: list[list[Moment]]) -> list[Moment]:
    return [along(steps, moment, points) for moment, *points in zip(base, *others, strict=True)]


def _blocks(moments: list[Moment], stacks: Stacks) -> list[tuple[str | None, list[list[Moment]]]]:
    """Group moments into blocks: layer by layer within a stack, and those between stacks."""
    places = [(_place(moment, stacks), moment) for moment in moments]
    runs = [(place, [moment for _, moment in run]) for place, run in groupby(places, key=lambda pair: pair[0])]
    return [(name, [run for _, run in block]) for name, block in groupby(runs, key=lambda run: run[0][0])]


def _place(moment: Moment, stacks: Stacks) -> tuple[str | None, int]:
    """The stack and layer that the moment's gradient belongs to."""
    for name in stacks.names:
        if moment.gradient is not None and moment.gradient.startswith(f"{name}."):
            return name, int(moment.gradient.removeprefix(f"{name}.").partition(".")[0])
    return None, 0


def _in_layer(moment: Moment, stack: str, number: int) -> Moment:
    assert moment.gradient is not None
    _, _, rest = moment.gradient.removeprefix(f"{stack}.").partition(".")
    return moment._replace(gradient=f"{stack}.{number}.{rest}")


def _form(layer: nn.Module) -> str:
    """A description of a layer without its number: modules, settings, shapes, and which tensors are trained."""
    parts = []
    for name, module in layer.named_modules():
        settings = {
            key: value
            for key, value in vars(module).items()
            if isinstance(value, int | float | str) and not _NUMBER.fullmatch(key)
        }
        tensors = [(key, p.shape, p.dtype, p.requires_grad) for key, p in module.named_parameters(recurse=False)]
        parts.append(f"{name} {type(module)} {sorted(settings.items())} {tensors}")
    return "\n".join(parts)
