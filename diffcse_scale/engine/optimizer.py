"""The optimizer and its parameter groups: one table, which training, checkpoints and `plan` use.

`optimizer.name` of the recipe (`recipe.py`) lists the same names; a test compares the two.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn

from diffcse_scale.foundation.errors import InputError
from diffcse_scale.model.networks import DiffCSENetworks
from diffcse_scale.recipe import OptimizerRecipe, Recipe

RATE = "rate"  # key of a parameter group: its factor on the learning rate
OF_DISCRIMINATOR = ("discriminator.", "rtd_head.")  # prefixes of the discriminator's parameter names


@dataclass(frozen=True)
class Optimizer:
    """A kind of optimizer.

    Attributes:
        kind: the class; it takes parameter groups and `lr`.
        settings: its other arguments, from the recipe.
        moments: the keys of its state with one number per element of a parameter; the state also has a `step`.
        moment_bytes: bytes of all moments together, per element of a parameter.
        whole_matrices: whether it needs whole matrices, which ZeRO-1 to 3 flatten and cut.
    """

    kind: type[torch.optim.Optimizer]
    settings: Callable[[OptimizerRecipe], dict[str, Any]]
    moments: tuple[str, ...]
    moment_bytes: int
    whole_matrices: bool


OPTIMIZERS = {
    "adamw": Optimizer(
        kind=torch.optim.AdamW,
        settings=lambda recipe: {"betas": recipe.betas, "eps": recipe.eps, "fused": True},
        moments=("exp_avg", "exp_avg_sq"),
        moment_bytes=8,
        whole_matrices=False,
    ),
}


class TrainedGroup(NamedTuple):
    """The parameters of one group of the optimizer."""

    label: str
    parameters: dict[str, nn.Parameter]  # by name
    is_decayed: bool
    rate: float  # a factor on the recipe's learning rate


def trained_groups(model: nn.Module) -> list[TrainedGroup]:
    """The trained parameters in groups: those with weight decay, and biases and normalisation weights without it.

    If the discriminator has its own learning rate, it also has its own groups, after the others.
    """
    rate = model.objective.discriminator_rate if isinstance(model, DiffCSENetworks) else 1.0
    groups = [TrainedGroup("decayed", {}, True, 1.0), TrainedGroup("kept", {}, False, 1.0)]
    if rate != 1:
        groups += [group._replace(label=f"{group.label}, discriminator", parameters={}, rate=rate) for group in groups]
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            # ZeRO-3 replaces a parameter by a flat remainder, and keeps the original shape in `ds_shape`
            shape = getattr(parameter, "ds_shape", parameter.shape)
            is_apart = rate != 1 and name.startswith(OF_DISCRIMINATOR)
            groups[(0 if len(shape) > 1 else 1) + (2 if is_apart else 0)].parameters[name] = parameter
    return groups


def make_optimizer(
    model: nn.Module, recipe: Recipe, kind: Callable[..., torch.optim.Optimizer] | None = None
) -> torch.optim.Optimizer:
    """The recipe's optimizer for the trained parameters, without weight decay for biases and normalisation weights.

    Args:
        kind: another implementation of the same optimizer; None for the table's class.
    """
    settings = recipe.optimizer
    groups = [
        {
            "params": list(group.parameters.values()),
            "weight_decay": settings.weight_decay if group.is_decayed else 0.0,
            RATE: group.rate,
        }
        for group in trained_groups(model)
        if group.parameters
    ]
    row = OPTIMIZERS[settings.name]
    make: Callable[..., torch.optim.Optimizer] = kind or row.kind
    return make(groups, lr=0.0, **row.settings(settings))


def set_learning_rate(optimizer: Any, learning_rate: float) -> None:
    """Set the learning rate of all groups, times each group's factor; called before every step, as it may change."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group.get(RATE, 1.0)


def moments_of(optimizer: torch.optim.Optimizer) -> tuple[str, ...]:
    """The keys of an optimizer's state that are as large as its parameters."""
    return next(row.moments for row in OPTIMIZERS.values() if isinstance(optimizer, row.kind))


def check_optimizer(recipe: Recipe, stage: int) -> None:
    """Check that the recipe's optimizer works at a ZeRO stage.

    Raises:
        InputError: the optimizer needs whole matrices, and the stage cuts them.
    """
    name = recipe.optimizer.name
    if stage and OPTIMIZERS[name].whole_matrices:
        raise InputError(
            f"optimizer.name {name} needs whole matrices, which ZeRO-{stage} partitions; use ZeRO stage 0."
        )
