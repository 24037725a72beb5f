"""Build the model that a recipe describes."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from diffcse_scale.foundation.paths import given_path
from diffcse_scale.foundation.randomness import seed_initial_numbers
from diffcse_scale.model.attention import attend_both_ways, check_attention, choose_attention_kernels
from diffcse_scale.model.backbone import CPU, checkpoint_activations, load_backbone, load_config
from diffcse_scale.model.dropout import set_dropout
from diffcse_scale.model.fits import check_fits
from diffcse_scale.model.lora import add_adapters, loading_options
from diffcse_scale.model.networks import DiffCSENetworks
from diffcse_scale.model.official_checkpoint import load_official_checkpoint
from diffcse_scale.model.packing import allow_packing
from diffcse_scale.model.starting_point import tell_what_is_left_out
from diffcse_scale.recipe import Recipe
from diffcse_scale.text.tokenizers import Tokenizers


def build_model(recipe: Recipe, tokenizers: Tokenizers, device: torch.device = CPU) -> DiffCSENetworks:
    """The recipe's networks, with pretrained weights; new parts are initialized from the recipe's seed and their name.

    Args:
        device: where pretrained weights are loaded; new parts are made on the CPU.

    Raises:
        InputError: weights cannot be loaded or do not fit, a backbone cannot read the vocabulary or the sentences, or
            settings cannot work with this family.
    """
    settings, lengths = recipe.model, {"data.max_length": recipe.data.max_length}
    choose_attention_kernels(settings.cudnn_attention)
    check_attention(load_config(settings.encoder, settings.trust_remote_code), recipe)
    discriminator = None
    if recipe.objective.rtd_weight > 0:
        discriminator = _discriminator(recipe, device)
        name = settings.discriminator or settings.encoder
        check_fits(discriminator, tokenizers.discriminator, name, lengths)
    backbone = _encoder(recipe, device, **loading_options(settings.lora, device))
    lengths["evaluation.max_length"] = recipe.evaluation.max_length
    check_fits(backbone, tokenizers.encoder, settings.encoder, lengths)
    tell_what_is_left_out(recipe)
    model = DiffCSENetworks(
        backbone,
        recipe.objective,
        settings.pooling,
        settings.projection,
        discriminator,
        condition_is_mapped=settings.discriminator is not None,
        seed=recipe.seed,
    )
    if settings.checkpoint is not None:
        load_official_checkpoint(model, given_path(settings.checkpoint))
    if settings.lora is not None:
        seed_initial_numbers(recipe.seed, "adapters")
        add_adapters(model.encoder.backbone, settings.lora)
    return model


def _discriminator(recipe: Recipe, device: torch.device) -> PreTrainedModel:
    """The discriminator's backbone: another network, or the encoder's network loaded again, whole and in float32.

    A copy of the loaded modules would be empty under ZeRO-3, which leaves each rank only its part of the weights. It
    would also have too few bits if the encoder's base has a reduced precision.
    """
    settings = recipe.model
    if settings.discriminator is None:
        return _encoder(recipe, device)
    backbone = load_backbone(settings.discriminator, settings.trust_remote_code, device)
    allow_packing(backbone)
    if settings.gradient_checkpointing:
        checkpoint_activations(backbone)
    return backbone


def _encoder(recipe: Recipe, device: torch.device, **options: object) -> PreTrainedModel:
    settings = recipe.model
    config = load_config(settings.encoder, settings.trust_remote_code)
    if settings.dropout is not None:
        set_dropout(config, settings.dropout)
    backbone = load_backbone(settings.encoder, settings.trust_remote_code, device, config=config, **options)
    if settings.attention == "bidirectional":
        attend_both_ways(backbone)
    allow_packing(backbone)
    if settings.gradient_checkpointing:
        checkpoint_activations(backbone)
    return backbone
