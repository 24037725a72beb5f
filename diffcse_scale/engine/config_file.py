"""A DeepSpeed configuration as a file: read, and refused where it would be ignored or contradict the recipe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from diffcse_scale.foundation.errors import InputError, nearest
from diffcse_scale.foundation.paths import given_path
from diffcse_scale.foundation.shipped import shipped
from diffcse_scale.foundation.unique_keys import DuplicateKey, load_json

# what a DeepSpeed configuration may say; DeepSpeed itself accepts a misspelt top-level key in silence
KNOWN_KEYS = {
    "activation_checkpointing", "aio", "bf16", "checkpoint", "comms_logger", "communication_data_type", "csv_monitor",
    "data_types", "disable_allgather", "dump_state", "flops_profiler", "fp16", "gradient_accumulation_steps",
    "gradient_clipping", "memory_breakdown", "prescale_gradients", "seq_parallel_communication_data_type",
    "steps_per_print", "tensorboard", "timers", "torch_autocast", "train_batch_size", "train_micro_batch_size_per_gpu",
    "wall_clock_breakdown", "wandb", "zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer",
    "zero_optimization",
}  # fmt: skip
RECIPE_KEYS = {
    "optimizer": "optimizer",
    "scheduler": "optimizer.schedule",
    "gradient_clipping": "optimizer.clip",
}


def load_deepspeed_config(path: str | Path | None) -> dict[str, Any]:
    """Read a DeepSpeed JSON (None: the shipped zero2.json) and refuse what would be ignored or contradict the recipe.

    Raises:
        InputError: missing file, malformed JSON, unknown key, or a setting that belongs in the recipe.
    """
    path = shipped("ds_configs") / "zero2.json" if path is None else path
    try:
        config = load_json(given_path(path).read_text(encoding="utf-8"))
    except OSError:
        raise InputError(f"DeepSpeed configuration {path} cannot be read; ds_configs/ has one a stage.") from None
    except DuplicateKey as error:
        raise InputError(f"DeepSpeed configuration {path}: {error}.") from None
    except json.JSONDecodeError as error:
        raise InputError(f"DeepSpeed configuration {path} is not valid JSON: {error}.") from None
    if not isinstance(config, dict):
        raise InputError(f"DeepSpeed configuration {path} must be a JSON object.")
    for key in config:
        if key in RECIPE_KEYS:
            raise InputError(f"DeepSpeed configuration {path}: {key} belongs in the recipe ({RECIPE_KEYS[key]}).")
        if key not in KNOWN_KEYS:
            raise InputError(f"DeepSpeed configuration {path}: unknown key {key}{nearest(key, KNOWN_KEYS)}.")
    for section in ("zero_optimization", "bf16", "fp16", "torch_autocast"):
        if not isinstance(config.get(section, {}), dict):
            raise InputError(
                f'DeepSpeed configuration {path}: {section} must be an object, such as {{"enabled": true}}.'
            )
    return config
