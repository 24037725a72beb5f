"""The optimizer and its groups of parameters: one table, which training, checkpoints and `plan` read.

`optimizer.name` of the recipe (`recipe.py`) lists the names; a test holds the two together.
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

RATE = "rate"  # of a group: a factor on the learning rate
OF_DISCRIMINATOR = ("discriminator.", "rtd_head.")  # begin the names of its parameters


@dataclass(frozen=True)
class Optimizer:
    """A kind of optimizer.

    Attributes:
        kind: the class; it takes groups of parameters and `lr`.
        settings: its other arguments, from the recipe.
        moments: the keys of its state that hold a number for each of a parameter's; beside them it has a `step`.
        moment_bytes: of all of them together, for each number of a parameter.
        whole_matrices: it looks at a matrix as one, which ZeRO 1 to 3 lay end to end and cut.
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
    """Parameters that one group of the optimizer holds."""

    label: str
    parameters: dict[str, nn.Parameter]  # by name
    is_decayed: bool
    rate: float  # a factor on the recipe's learning rate


def trained_groups(model: nn.Module) -> list[TrainedGroup]:
    """The trained parameters: those that are decayed, and biases and normalisation weights, which are not.

    Where the discriminator has a learning rate of its own, it has groups of its own, behind the others.
    """
    rate = model.objective.discriminator_rate if isinstance(model, DiffCSENetworks) else 1.0
    groups = [TrainedGroup("decayed", {}, True, 1.0), TrainedGroup("kept", {}, False, 1.0)]
    if rate != 1:
        groups += [group._replace(label=f"{group.label}, discriminator", parameters={}, rate=rate) for group in groups]
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            # ZeRO-3 leaves a flat remainder in the place of a parameter, and its shape beside it
            shape = getattr(parameter, "ds_shape", parameter.shape)
            is_apart = rate != 1 and name.startswith(OF_DISCRIMINATOR)
            groups[(0 if len(shape) > 1 else 1) + (2 if is_apart else 0)].parameters[name] = parameter
    return groups


def make_optimizer(
    model: nn.Module, recipe: Recipe, kind: Callable[..., torch.optim.Optimizer] | None = None
) -> torch.optim.Optimizer:
    """The recipe's optimizer over the trained parameters; biases and normalisation weights are not decayed.

    Args:
        kind: computes the same in another way; None for the table's class.
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
    """Of all groups, by the factor of each; done before every step, as the recipe's is a function of the step."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group.get(RATE, 1.0)


def moments_of(optimizer: torch.optim.Optimizer) -> tuple[str, ...]:
    """The keys of an optimizer's state that are as large as its parameters."""
    return next(row.moments for row in OPTIMIZERS.values() if isinstance(optimizer, row.kind))


def check_optimizer(recipe: Recipe, stage: int) -> None:
    """See to it that the recipe's optimizer works at a ZeRO stage.

    Raises:
        InputError: it needs whole matrices, and the stage cuts them.
    """
    name = recipe.optimizer.name
    if stage and OPTIMIZERS[name].whole_matrices:
        raise InputError(
            f"optimizer.name {name} needs whole matrices, which ZeRO-{stage} partitions; use ZeRO stage 0."
        )
