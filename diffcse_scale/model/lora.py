"""Adapters on a frozen encoder (LoRA, QLoRA) with `peft`, added in place, so that the backbone keeps its class."""

from __future__ import annotations

import copy
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, PreTrainedModel

from diffcse_scale.foundation.errors import InputError
from diffcse_scale.recipe import LoraRecipe


def loading_options(lora: LoraRecipe | None, device: torch.device) -> dict[str, Any]:
    """Options for `from_pretrained`, so that a base is never held in more than its own precision.

    Raises:
        InputError: 4 bits are asked for, but bitsandbytes is not installed.
    """
    if lora is None or lora.base == "float32":
        return {}
    if lora.base == "bfloat16":
        return {"dtype": torch.bfloat16}
    if find_spec("bitsandbytes") is None:
        raise InputError("model.lora.base nf4 needs bitsandbytes: pip install 'diffcse-scale[qlora]', or use bfloat16.")
    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    return {"dtype": torch.bfloat16, "quantization_config": quantization, "device_map": {"": device}}


def add_adapters(backbone: PreTrainedModel, lora: LoraRecipe) -> None:
    """Freeze the backbone in its base's precision, and add adapters in float32; only the adapters are trained.

    Raises:
        InputError: peft is not installed, or the backbone has no layers with the given names.
    """
    try:
        from peft import LoraConfig
    except ImportError:
        raise InputError("model.lora needs peft: pip install 'diffcse-scale[lora]'.") from None
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules or "all-linear",
    )
    try:
        backbone.add_adapter(config)
    except ValueError as error:
        raise InputError(f"model.lora.target_modules: {str(error).strip().splitlines()[0]}") from None
    for parameter in backbone.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
        elif parameter.is_floating_point() and lora.base == "bfloat16":
            # only parameters, so that the buffers of rotary positions stay exact
            parameter.data = parameter.data.bfloat16()


def has_adapters(backbone: PreTrainedModel) -> bool:
    """Whether the backbone has adapters from `add_adapters`."""
    return getattr(backbone, "_hf_peft_config_loaded", False)


@torch.no_grad()
def save_merged(backbone: PreTrainedModel, folder: Path, state: dict[str, Tensor] | None = None) -> None:
    """Write a plain float32 model that computes the same as the backbone with its adapters.

    The backbone is not changed, because merging in place and undoing it would round the frozen weights. Only float32
    weights that have an adapter are copied.

    Args:
        state: the weights, if `backbone` holds only a part of them (ZeRO-3).
    """
    from peft.tuners.lora import LoraLayer

    config = copy.deepcopy(backbone.config)
    config.dtype = torch.float32
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"):  # only names and shapes; the weights are assigned below
        plain = type(backbone)(config)
    if getattr(backbone, "pooler", None) is None:
        plain.pooler = None
    weights = backbone.state_dict() if state is None else state
    merged: dict[str, Tensor] = {}
    for key in plain.state_dict():
        path, _, leaf = key.rpartition(".")
        module = backbone.get_submodule(path)
        adapted = isinstance(module, LoraLayer)
        base = module.get_base_layer() if adapted else module
        # detach, because a parameter of the backbone itself would be assigned and set to require a gradient
        value = weights[f"{path}.base_layer.{leaf}" if adapted else key].detach()
        if leaf == "weight" and not value.is_floating_point():
            value = _dequantized(base)
        value = value.float() if value.is_floating_point() else value
        if adapted and leaf == "weight":
            down, up = (weights[f"{path}.lora_{side}.default.weight"].detach().float() for side in "AB")
            value = value + (module.scaling["default"] * up @ down).to(value.device)
        merged[key] = value.cpu()  # one by one, as a device that trains 4-bit weights has no room for all in float32
    plain.load_state_dict(merged, assign=True)
    plain.save_pretrained(folder)


def _dequantized(linear: nn.Linear) -> Tensor:
    """The weight [out, in] of a quantized linear layer, computed by applying the layer to the identity matrix.

    This is right in whatever form the layer holds its weight. On CPUs bitsandbytes repacks it at the first call, and
    its own function for dequantization does not know about this.
    """
    bias, linear.bias = linear.bias, None  # type: ignore[assignment]
    identity = torch.eye(linear.in_features, dtype=torch.bfloat16, device=linear.weight.device)
    weight = linear(identity).T
    linear.bias = bias
    return weight
