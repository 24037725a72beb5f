"""The model that a recipe describes."""

from __future__ import annotations

from pathlib import Path

from diffcse_scale.model.backbone import check_lengths, load_backbone
from diffcse_scale.model.diffcse import DiffCSE
from diffcse_scale.model.official_checkpoint import load_official_checkpoint
from diffcse_scale.recipe import Recipe
from diffcse_scale.text.tokenizers import Tokenizers


def build_model(recipe: Recipe, tokenizers: Tokenizers) -> DiffCSE:
    """The recipe's networks, with pretrained weights where it names some.

    Raises:
        InputError: weights that cannot be loaded or do not fit, or sentences longer than the backbone can read.
    """
    backbone = load_backbone(recipe.model.encoder, recipe.model.trust_remote_code)
    lengths = {"data.max_length": recipe.data.max_length, "evaluation.max_length": recipe.evaluation.max_length}
    check_lengths(backbone, tokenizers.encoder, lengths)
    discriminator = None
    if recipe.model.discriminator is not None and recipe.objective.rtd_weight > 0:
        discriminator = load_backbone(recipe.model.discriminator, recipe.model.trust_remote_code)
        check_lengths(discriminator, tokenizers.discriminator, {"data.max_length": recipe.data.max_length})
    if recipe.model.gradient_checkpointing:
        for network in filter(None, (backbone, discriminator)):
            # the reentrant kind fails under ZeRO-2 and 3 when an encoder is called more than once a step
            network.gradient_checkpointing_enable({"use_reentrant": False})
    model = DiffCSE(backbone, recipe.objective, recipe.model.pooling, recipe.model.projection, discriminator)
    if recipe.model.checkpoint is not None:
        load_official_checkpoint(model, Path(recipe.model.checkpoint))
    return model
