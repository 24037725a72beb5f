"""The only difference between two views of one sentence is dropout, so an encoder must have some."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedConfig

from diffcse_scale.errors import InputError
from diffcse_scale.recipe import Recipe


def set_dropout(config: PreTrainedConfig, probability: float) -> None:
    """Give every dropout that the configuration knows this probability.

    Raises:
        InputError: it knows none.
    """
    names = [name for name, value in config.to_dict().items() if _is_dropout(name, value)]
    if not names:
        raise InputError(f"model.dropout: the configuration of {config.model_type} has no dropout to set.")
    for name in names:
        setattr(config, name, probability)


def has_dropout(network: nn.Module) -> bool:
    """Whether anything in the network drops: a layer of it, or an attention with a probability of its own."""
    settings = [(name, value) for module in network.modules() for name, value in vars(module).items()]
    layers = [("dropout", module.p) for module in network.modules() if isinstance(module, nn.Dropout)]
    return any(_is_dropout(name, value) and value > 0 for name, value in settings + layers)


def check_views_differ(encoder: nn.Module, recipe: Recipe, columns: int) -> None:
    """Refuse to contrast a sentence with itself.

    Args:
        columns: of the corpus; with more than one, views are different texts.

    Raises:
        InputError: one column, and an encoder without dropout that was not asked for by name.
    """
    wanted = recipe.objective.contrastive_weight > 0 and recipe.model.dropout is None
    if wanted and columns == 1 and not has_dropout(encoder):
        raise InputError(
            f"The two views of a sentence would be equal: {recipe.model.encoder} has no dropout; set model.dropout "
            "(0.1, say), or give pairs of sentences in data.columns."
        )


def _is_dropout(name: str, value: object) -> bool:
    named = "dropout" in name or name.endswith("_pdrop")
    return named and isinstance(value, int | float) and not isinstance(value, bool)
