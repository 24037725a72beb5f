"""The optimizer and its groups of parameters: one table, which training, checkpoints and `plan` read.

`optimizer.name` of the recipe (`recipe.py`) lists the names; a test holds the two together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from diffcse_scale.foundation.errors import InputError
from diffcse_scale.recipe import OptimizerRecipe, Recipe


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


def trained_groups(model: nn.Module) -> tuple[dict[str, nn.Parameter], dict[str, nn.Parameter]]:
    """The trained parameters by name: those that are decayed, and biases and normalisation weights, which are not."""
    decayed: dict[str, nn.Parameter] = {}
    kept: dict[str, nn.Parameter] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            # ZeRO-3 leaves a flat remainder in the place of a parameter, and its shape beside it
            shape = getattr(parameter, "ds_shape", parameter.shape)
            (decayed if len(shape) > 1 else kept)[name] = parameter
    return decayed, kept


def make_optimizer(
    model: nn.Module, recipe: Recipe, kind: Callable[..., torch.optim.Optimizer] | None = None
) -> torch.optim.Optimizer:
    """The recipe's optimizer over the trained parameters; biases and normalisation weights are not decayed.

    Args:
        kind: computes the same in another way; None for the table's class.
    """
    settings = recipe.optimizer
    decayed, kept = trained_groups(model)
    groups = [
        {"params": list(decayed.values()), "weight_decay": settings.weight_decay},
        {"params": list(kept.values()), "weight_decay": 0.0},
    ]
    # the recipe's learning rate is set before every step, as a function of the step
    groups = [group for group in groups if group["params"]]
    row = OPTIMIZERS[settings.name]
    make: Callable[..., torch.optim.Optimizer] = kind or row.kind
    return make(groups, lr=0.0, **row.settings(settings))


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
        raise InputError(f"optimizer.name {name} needs whole matrices, which ZeRO-{stage} cuts; use ZeRO stage 0.")
