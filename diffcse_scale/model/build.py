"""The model that a recipe describes."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedModel

from diffcse_scale.model.backbone import check_lengths, load_backbone
from diffcse_scale.model.diffcse import DiffCSE
from diffcse_scale.model.official_checkpoint import load_official_checkpoint
from diffcse_scale.randomness import seed_everything
from diffcse_scale.recipe import Recipe
from diffcse_scale.text.tokenizers import Tokenizers


def build_model(recipe: Recipe, tokenizers: Tokenizers) -> DiffCSE:
    """The recipe's networks, with pretrained weights where it names some; every draw follows from the recipe's seed.

    Raises:
        InputError: weights that cannot be loaded or do not fit, or sentences longer than a backbone can read.
    """
    settings, lengths = recipe.model, {"data.max_length": recipe.data.max_length}
    discriminator = None
    if recipe.objective.rtd_weight > 0:
        discriminator = _backbone(recipe, settings.discriminator or settings.encoder)
        check_lengths(discriminator, tokenizers.discriminator, lengths)
    backbone = _backbone(recipe, settings.encoder)
    check_lengths(backbone, tokenizers.encoder, {**lengths, "evaluation.max_length": recipe.evaluation.max_length})
    model = DiffCSE(
        backbone,
        recipe.objective,
        settings.pooling,
        settings.projection,
        discriminator,
        condition_is_mapped=settings.discriminator is not None,
    )
    if settings.checkpoint is not None:
        load_official_checkpoint(model, Path(settings.checkpoint))
    return model


def _backbone(recipe: Recipe, name: str) -> PreTrainedModel:
    """Two calls give equal networks, also where weights are missing on disk and drawn.

    Loading twice is how the discriminator comes to be a copy of the encoder: a copy of the loaded modules would be
    empty where ZeRO-3 leaves each rank only its part of the weights.
    """
    seed_everything(recipe.seed)
    backbone = load_backbone(name, recipe.model.trust_remote_code)
    if recipe.model.gradient_checkpointing:
        # the reentrant kind fails under ZeRO-2 and 3 when an encoder is called more than once a step
        backbone.gradient_checkpointing_enable({"use_reentrant": False})
    return backbone
