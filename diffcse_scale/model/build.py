"""The model that a recipe describes."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from diffcse_scale.errors import InputError
from diffcse_scale.model.attention import attend_both_ways, check_attention
from diffcse_scale.model.backbone import check_lengths, checkpoint_activations, load_backbone, load_config
from diffcse_scale.model.diffcse import DiffCSE
from diffcse_scale.model.dropout import set_dropout
from diffcse_scale.model.lora import add_adapters, loading_options
from diffcse_scale.model.official_checkpoint import load_official_checkpoint
from diffcse_scale.recipe import Recipe


def build_model(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, device: torch.device | str = "cpu") -> DiffCSE:
    """The recipe's networks, with pretrained weights where it names some.

    Args:
        device: where an encoder of 4 bits is loaded; all others are loaded on the CPU.

    Raises:
        InputError: weights that cannot be loaded or do not fit, sentences longer than the backbone can read, or
            settings that cannot work with this family.
    """
    backbone = _encoder(recipe, device)
    lengths = {"data.max_length": recipe.data.max_length, "evaluation.max_length": recipe.evaluation.max_length}
    check_lengths(backbone, tokenizer, lengths)
    if recipe.model.gradient_checkpointing:
        checkpoint_activations(backbone)
    model = DiffCSE(backbone, recipe.objective, recipe.model.pooling, recipe.model.projection)
    if recipe.model.checkpoint is not None:
        load_official_checkpoint(model, Path(recipe.model.checkpoint))
    if recipe.model.lora is not None:
        # last: the discriminator is a copy of the whole encoder without adapters, and all of it is trained
        add_adapters(model.encoder.backbone, recipe.model.lora)
    return model


def _encoder(recipe: Recipe, device: torch.device | str) -> PreTrainedModel:
    settings = recipe.model
    config = load_config(settings.encoder, settings.trust_remote_code)
    check_attention(config, recipe)
    if settings.dropout is not None:
        set_dropout(config, settings.dropout)
    options = loading_options(settings.lora, device)
    if recipe.objective.rtd_weight > 0 and settings.discriminator is None:
        # the copy that becomes the discriminator is trained, in float32; the encoder is reduced after it is made
        if "quantization_config" in options:
            raise InputError(
                "model.lora.base nf4: a discriminator cannot be copied from 4 bits; set model.discriminator, or "
                "model.lora.base to bfloat16."
            )
        options = {}
    backbone = load_backbone(settings.encoder, settings.trust_remote_code, config=config, **options)
    if settings.attention == "bidirectional":
        attend_both_ways(backbone)
    return backbone
