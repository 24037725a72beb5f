"""Causal or bidirectional attention of a backbone, and which of PyTorch's kernels may compute it.

Tokens of decoder-only models see only earlier tokens, unless the model is made bidirectional.
"""

from __future__ import annotations

import sys

import torch
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING, PreTrainedConfig, PreTrainedModel

from diffcse_scale.foundation.errors import InputError
from diffcse_scale.model.pooling import POOLINGS
from diffcse_scale.recipe import Recipe


def choose_attention_kernels(cudnn: bool = False) -> None:
    """Set for this process whether cuDNN may compute attention; PyTorch's other kernels always may.

    By default torch prefers cuDNN on Hopper and Blackwell. cuDNN makes a plan for each new shape, and in batches of
    text most shapes are new. Its dropout has a resolution of 1/16. Since pytorch #174245 torch uses another kernel for
    any other dropout; before that, the dropout was silently rounded.
    """
    torch.backends.cuda.enable_cudnn_sdp(cudnn)


def attention_kernels() -> str:
    """What `choose_attention_kernels` has decided, in words."""
    others = "flash, else memory-efficient, else plain"
    if not torch.backends.cuda.cudnn_sdp_enabled():
        return others
    return f"cuDNN where PyTorch prefers it and dropout is a multiple of 1/16, else {others}"


def is_causal(config: PreTrainedConfig) -> bool:
    """Whether tokens see only earlier ones: the family is decoder-only, and was not made bidirectional."""
    decoder = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING and type(config) not in MODEL_FOR_MASKED_LM_MAPPING
    opened = not getattr(config, "is_causal", True) or getattr(config, "use_bidirectional_attention", False)
    return decoder and not opened


def attend_both_ways(backbone: PreTrainedModel) -> None:
    """Let every token see later ones too. The configuration records it, so an exported model does the same.

    Raises:
        InputError: the family's attention cannot be made bidirectional.
    """
    if not is_causal(backbone.config):
        return
    # transformers' own masks obey config.is_causal; a family that builds its own mask may silently ignore it
    if not hasattr(sys.modules[type(backbone).__module__], "create_causal_mask"):
        raise InputError(
            f"{type(backbone).__name__} builds its attention mask itself and stays causal; leave model.attention out."
        )
    backbone.config.is_causal = False


def check_attention(config: PreTrainedConfig, recipe: Recipe) -> None:
    """Refuse settings that cannot work if tokens see only earlier ones.

    Raises:
        InputError: the embedding is the first token's, or the discriminator does not see what follows a token.
    """
    if not is_causal(config) or recipe.model.attention == "bidirectional":
        return
    name = recipe.model.encoder
    if POOLINGS[recipe.model.pooling].token == "first":
        raise InputError(
            f"model.pooling {recipe.model.pooling} is the first token, which in {name} sees no other (it is "
            "decoder-only); set model.pooling to last or mean."
        )
    if recipe.objective.rtd_weight > 0 and recipe.model.discriminator is None:
        raise InputError(
            f"The discriminator cannot be a copy of {name}, whose tokens see no later ones (it is decoder-only); "
            "set model.discriminator to a masked language model, or objective.rtd_weight to 0."
        )
