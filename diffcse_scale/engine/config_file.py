"""Reads a DeepSpeed configuration file, and refuses anything that would be ignored or contradict the recipe."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from diffcse_scale.foundation.errors import InputError, brief, nearest, quoted
from diffcse_scale.foundation.shipped import shipped
from diffcse_scale.foundation.text_file import read_text
from diffcse_scale.foundation.unique_keys import load_json

# the top-level keys of a DeepSpeed configuration and the types of their values; DeepSpeed itself silently accepts a
# misspelt one
KEYS: dict[str, type] = {
    "activation_checkpointing": dict, "aio": dict, "bf16": dict, "checkpoint": dict, "comms_logger": dict,
    "communication_data_type": str, "csv_monitor": dict, "data_types": dict, "disable_allgather": bool,
    "dump_state": bool, "flops_profiler": dict, "fp16": dict, "gradient_accumulation_steps": int,
    "memory_breakdown": bool, "prescale_gradients": bool, "seq_parallel_communication_data_type": str,
    "steps_per_print": int, "tensorboard": dict, "timers": dict, "torch_autocast": dict, "train_batch_size": int,
    "train_micro_batch_size_per_gpu": int, "wall_clock_breakdown": bool, "wandb": dict,
    "zero_allow_untested_optimizer": bool, "zero_force_ds_cpu_optimizer": bool, "zero_optimization": dict,
}  # fmt: skip
# the same for the sections in which DeepSpeed silently accepts misspelt keys and wrong types
SECTIONS: dict[str, dict[str, type]] = {
    "activation_checkpointing": {
        "partition_activations": bool, "contiguous_memory_optimization": bool, "cpu_checkpointing": bool,
        "number_checkpoints": int, "synchronize_checkpoint_boundary": bool, "profile": bool,
    },
    "aio": {
        "block_size": int, "queue_depth": int, "intra_op_parallelism": int, "single_submit": bool,
        "overlap_events": bool, "use_gds": bool,
    },
    "checkpoint": {
        "tag_validation": str, "load_universal": bool, "use_node_local_storage": bool, "parallel_write": dict,
        "checkpoint_serialization": bool, "writer": dict,
    },
    "data_types": {
        "grad_accum_dtype": str, "param_dtype": str, "buffer_dtype": str, "keep_in_fp32_modules": list,
    },
    "flops_profiler": {
        "enabled": bool, "recompute_fwd_factor": float, "profile_step": int, "module_depth": int, "top_modules": int,
        "detailed": bool, "output_file": str,
    },
    "timers": {"throughput": dict},
    "torch_autocast": {"enabled": bool, "dtype": str, "lower_precision_safe_modules": list},
}  # fmt: skip
HALF = ("bf16", "fp16")  # sections of numbers in 16 bits
RECIPE_KEYS = {
    "optimizer": "optimizer",
    "scheduler": "optimizer.schedule",
    "gradient_clipping": "optimizer.clip",
}
# keys for which "auto" means that this program decides; for all others it means DeepSpeed's default
OURS = {"zero_optimization.stage", "bf16.enabled", "torch_autocast.enabled", "zero_force_ds_cpu_optimizer"}
WORDS = {
    dict: 'an object, such as {"enabled": true}', list: "a list", str: "text", bool: "true or false",
    int: "a whole number", float: "a number",
}  # fmt: skip


def shipped_configs() -> dict[str, Path]:
    """The configurations that come with the package: file by name."""
    return {file.stem: file for file in sorted(shipped("ds_configs").glob("*.json"))}


def named(path: str | Path | None) -> str:
    """What messages call the configuration in the file `path` (None: the shipped zero2.json)."""
    return f"DeepSpeed configuration {'zero2.json' if path is None else brief(str(path), 200)}"


def load_deepspeed_config(path: str | Path | None) -> dict[str, Any]:
    """Read a DeepSpeed JSON and refuse anything that would be ignored or contradict the recipe.

    A value "auto" is left out if DeepSpeed or the recipe decides it. Top-level keys that are null are left out too.

    Args:
        path: the file, or the name of a shipped one (`zero3`), which takes precedence over a file; None for zero2.json.

    Raises:
        InputError: missing file, malformed JSON, unknown key, a value of the wrong type, or a setting that belongs in
            the recipe.
    """
    called = named(path)
    names = shipped_configs()
    path = names["zero2"] if path is None else names.get(str(path), path)
    otherwise = f"shipped are {', '.join(names)}"
    try:
        config = _decided(_read_json(read_text(path, called, otherwise), called))
    except RecursionError:
        raise InputError(f"{called} is nested too deeply.") from None
    config = {key: value for key, value in config.items() if value is not None}
    for key in config:
        if key in RECIPE_KEYS:
            raise InputError(f"{called}: {key} belongs in the recipe ({RECIPE_KEYS[key]}); remove it.")
    _check(config, KEYS, called)
    for section, keys in SECTIONS.items():
        _check(config.get(section, {}), keys, called, f"{section}.")
    for section in HALF:  # DeepSpeed reads the text "false" as false, but Python as true
        enabled = {key: value for key, value in config.get(section, {}).items() if key == "enabled"}
        _check(enabled, {"enabled": bool}, called, f"{section}.")
    if config.get("zero_optimization", {}).get("stage") == "auto":
        raise InputError(f"{called}: zero_optimization.stage is 'auto'; set it to 0, 1, 2 or 3.")
    return config


def _read_json(text: str, called: str) -> dict[str, Any]:
    """Parse `text` as a JSON object with finite numbers."""
    try:
        config = load_json(text)
    except ValueError as error:  # malformed, a repeated key, or a number with too many digits
        wrong = " is not valid JSON" if isinstance(error, json.JSONDecodeError) else ""
        raise InputError(f"{called}{wrong}: {brief(str(error), 200)}.") from None
    if not isinstance(config, dict):
        raise InputError(f"{called} must be a JSON object.")
    for key, value in _numbers(config):
        if not math.isfinite(value):
            raise InputError(f"{called}: {brief(key)} is {value}, which is not a finite number.")
    return config


def _decided(values: dict[str, Any], section: str = "") -> dict[str, Any]:
    """`values` without each "auto" that this program does not decide."""
    return {
        key: _decided(value, f"{section}{key}.") if isinstance(value, dict) else value
        for key, value in values.items()
        if value != "auto" or section + key in OURS
    }


def _numbers(value: Any, key: str = "") -> Iterator[tuple[str, float]]:
    """Each number with the path of its key."""
    if isinstance(value, float):
        yield key, value
    elif isinstance(value, dict | list):
        for name, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _numbers(part, f"{key}.{name}" if key else str(name))


def _check(values: Mapping[str, Any], keys: Mapping[str, type], called: str, section: str = "") -> None:
    """Raise InputError if `values` has a key that is not in `keys`, or a value of the wrong type."""
    for key, value in values.items():
        if key not in keys:
            raise InputError(f"{called}: unknown key {section}{brief(key)}{nearest(key, keys)}.")
        if not (_fits(value, keys[key]) or value == "auto" or (section and value is None)):
            raise InputError(f"{called}: {section}{key} must be {WORDS[keys[key]]}, not {quoted(value)}.")
        if keys[key] is int and not section and value < 1:
            raise InputError(f"{called}: {key} must be at least 1, not {quoted(value)}.")


def _fits(value: Any, wanted: type) -> bool:
    if wanted in (int, float):  # 1e6 is a whole number
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number and (wanted is float or value == int(value))
    return isinstance(value, wanted)
