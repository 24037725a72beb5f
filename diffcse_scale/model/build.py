"""The model that a recipe describes."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from diffcse_scale.model.backbone import check_lengths, load_backbone
from diffcse_scale.model.diffcse import DiffCSE
from diffcse_scale.model.official_checkpoint import load_official_checkpoint
from diffcse_scale.randomness import seed_everything
from diffcse_scale.recipe import ModelRecipe, Recipe


def build_model(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> DiffCSE:
    """The recipe's networks, with pretrained weights where it names some; every draw follows from the recipe's seed.

    Raises:
        InputError: weights that cannot be loaded or do not fit, or sentences longer than the backbone can read.
    """
    discriminator = _backbone(recipe.model, recipe.seed) if recipe.objective.rtd_weight > 0 else None
    backbone = _backbone(recipe.model, recipe.seed)
    lengths = {"data.max_length": recipe.data.max_length, "evaluation.max_length": recipe.evaluation.max_length}
    check_lengths(backbone, tokenizer, lengths)
    model = DiffCSE(backbone, recipe.objective, recipe.model.pooling, recipe.model.projection, discriminator)
    if recipe.model.checkpoint is not None:
        load_official_checkpoint(model, Path(recipe.model.checkpoint))
    return model


def _backbone(recipe: ModelRecipe, seed: int) -> PreTrainedModel:
    """The recipe's backbone. Two calls give equal ones, also where weights are missing on disk and drawn.

    Loading twice is how the discriminator comes to be a copy of the encoder: a copy of the loaded modules would be
    empty where ZeRO-3 leaves each rank only its part of the weights.
    """
    seed_everything(seed)
    backbone = load_backbone(recipe.encoder, recipe.trust_remote_code)
    if recipe.gradient_checkpointing:
        # the reentrant kind fails under ZeRO-2 and 3 when an encoder is called more than once a step
        backbone.gradient_checkpointing_enable({"use_reentrant": False})
    return backbone
