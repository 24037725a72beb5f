"""Checks a DeepSpeed configuration and completes it from the recipe."""

from __future__ import annotations

from typing import Any

from deepspeed.accelerator import get_accelerator
from deepspeed.runtime.config import DtypeEnum

from diffcse_scale.engine.launch import device
from diffcse_scale.engine.offload import check_host_optimizer
from diffcse_scale.engine.optimizer import check_optimizer
from diffcse_scale.engine.refusals import CALLED, checked_by_deepspeed
from diffcse_scale.engine.zero_plus import check_zero_plus
from diffcse_scale.foundation.environment import native_bfloat16
from diffcse_scale.foundation.errors import InputError
from diffcse_scale.model.compiled import check_compile
from diffcse_scale.recipe import Recipe
from diffcse_scale.text.batches import share_of


def complete_config(config: dict[str, Any], recipe: Recipe, devices: int, called: str = CALLED) -> dict[str, Any]:
    """Fill in batch sizes, clipping, and precisions that are "auto".

    Args:
        config: as `load_deepspeed_config` returns it.
        recipe: decides the batch sizes.
        devices: number of devices that share a batch.
        called: the configuration's name in messages.

    Raises:
        InputError: batch sizes in the JSON contradict the recipe (the message shows the arithmetic), DeepSpeed refuses
            a section, the device does not support the precision, or the machine lacks the requested compiler.
    """
    sentences = recipe.batch.sentences
    share = share_of(recipe.batch, devices)
    if recipe.objective.condition == "other" and sentences // devices < 2:
        raise InputError(
            f"objective.condition=other needs two sentences per device, but batch.sentences={sentences} on {devices} "
            "devices gives some of them only one; raise batch.sentences."
        )
    batch_keys = {
        "train_batch_size": sentences,
        "train_micro_batch_size_per_gpu": share,
        "gradient_accumulation_steps": 1,
    }
    for key, ours in batch_keys.items():
        theirs = config.get(key, "auto")
        if theirs not in ("auto", ours):
            most = "up to " if sentences % devices else ""
            raise InputError(
                f"{called} says {key} = {theirs}, but the recipe's batch.sentences = "
                f"{sentences} = {most}{share} sentences per device x {devices} devices x 1 "
                f"accumulation step; remove the key or set it to {ours}."
            )
    # DeepSpeed requires this product, even if shares differ by a sentence; it computes nothing from it
    batch_keys["train_batch_size"] = share * devices
    # torch's optimizer is the default also for offloaded state, because DeepSpeed's own for CPUs needs a compiler;
    # DeepSpeed's timer waits for the device in every forward pass
    defaults = {
        "steps_per_print": 10**9,
        "zero_force_ds_cpu_optimizer": False,
        "timers": {"throughput": {"enabled": False}},
    }
    completed = {**defaults, **config, **batch_keys, "gradient_clipping": recipe.optimizer.clip}
    for section in ("bf16", "torch_autocast"):
        if completed.get(section, {}).get("enabled") == "auto":
            completed[section] = {**completed[section], "enabled": native_bfloat16(device())}
    completed = checked_by_deepspeed(completed, called)
    check_zero_plus(completed, devices, called)
    lora, stage = recipe.model.lora, completed.get("zero_optimization", {}).get("stage", 0)
    if lora is not None and lora.base == "nf4" and stage == 3:
        raise InputError("ZeRO-3 cannot partition the 4-bit weights of model.lora.base nf4; use a stage below 3.")
    if recipe.model.compile:
        check_compile(stage)
    if recipe.objective.parameter_share_every is not None and stage > 0:
        raise InputError(
            f"objective.parameter_share_every needs whole gradients, and {called} asks for ZeRO stage {stage}; use "
            "stage 0, or leave it out: gradient_share, in z, is measured at every stage."
        )
    check_optimizer(recipe, stage)
    check_host_optimizer(completed)
    if completed.get("fp16", {}).get("enabled") and not get_accelerator().is_fp16_supported():
        raise InputError(
            f"{called} asks for fp16, which {get_accelerator().device_name()} devices do not support here; "
            "use torch_autocast with bfloat16, or no reduced precision."
        )
    _check_float16(completed, called)
    return completed


def _check_float16(config: dict[str, Any], called: str) -> None:
    """Refuse combinations in which DeepSpeed 0.19.8 silently scales the loss and its gradients differently.

    Raises:
        InputError: the message names settings that work.
    """
    stage = config.get("zero_optimization", {}).get("stage", 0)
    if config.get("fp16", {}).get("enabled") and stage == 0:
        raise InputError(
            f"{called} asks for fp16 at ZeRO stage 0, where DeepSpeed divides gradients by a loss scale "
            "that was never applied to the loss; use stage 1, 2 or 3, or torch_autocast with bfloat16."
        )
    autocast = config.get("torch_autocast", {})
    if autocast.get("enabled") and DtypeEnum(autocast.get("dtype", "bfloat16")) is DtypeEnum.fp16 and stage > 0:
        raise InputError(
            f"{called} asks for torch_autocast with float16 at ZeRO stage {stage}, where DeepSpeed "
            'clips gradients that still carry the loss scale; use "dtype": "bfloat16", or stage 0.'
        )


def precision(config: dict[str, Any]) -> str:
    """The precision of a completed configuration, in words."""
    for section, words in (("fp16", "float16"), ("bf16", "bfloat16")):
        if config.get(section, {}).get("enabled"):
            return words
    autocast = config.get("torch_autocast", {})
    if autocast.get("enabled"):
        return f"float32 weights, {autocast.get('dtype', 'bfloat16')} products"
    return "float32"
