"""Set the dropout, the only difference between two views of one sentence, from `model.dropout`."""

from __future__ import annotations

from transformers import PreTrainedConfig

from diffcse_scale.foundation.errors import InputError


def set_dropout(config: PreTrainedConfig, probability: float) -> None:
    """Set every dropout in the configuration to this probability.

    Raises:
        InputError: the configuration has no dropout.
    """
    names = [name for name, value in config.to_dict().items() if _is_dropout(name, value)]
    if not names:
        raise InputError(f"model.dropout: the configuration of {config.model_type} has no dropout to set.")
    for name in names:
        setattr(config, name, probability)


def _is_dropout(name: str, value: object) -> bool:
    named = "dropout" in name or name.endswith("_pdrop")
    return named and isinstance(value, int | float) and not isinstance(value, bool)
