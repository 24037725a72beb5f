"""Where DeepSpeed is met: its configuration completed and checked, its launch, and what differs by ZeRO stage."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import deepspeed
import deepspeed.ops
import torch
from deepspeed.accelerator import get_accelerator
from pydantic import ValidationError
from torch import Tensor, nn
from torch.distributed import DistNetworkError
from transformers.integrations import HfDeepSpeedConfig, unset_hf_deepspeed_config

from diffcse_scale.distributed import free_port, is_main, join, local_rank, world_size
from diffcse_scale.environment import native_bfloat16
from diffcse_scale.errors import InputError
from diffcse_scale.host_memory import freed_blocks_returned, keep_freed_blocks
from diffcse_scale.model.compiled import check_compile
from diffcse_scale.recipe import Recipe, nearest
from diffcse_scale.shipped import shipped
from diffcse_scale.text.batches import share_of

# what a DeepSpeed configuration may say; DeepSpeed itself accepts a misspelt top-level key in silence
KNOWN_KEYS = {
    "activation_checkpointing", "aio", "bf16", "checkpoint", "comms_logger", "communication_data_type", "csv_monitor",
    "data_types", "disable_allgather", "dump_state", "flops_profiler", "fp16", "gradient_accumulation_steps",
    "gradient_clipping", "memory_breakdown", "prescale_gradients", "seq_parallel_communication_data_type",
    "steps_per_print", "tensorboard", "torch_autocast", "train_batch_size", "train_micro_batch_size_per_gpu",
    "wall_clock_breakdown", "wandb", "zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer",
    "zero_optimization",
}  # fmt: skip
RECIPE_KEYS = {
    "optimizer": "optimizer",
    "scheduler": "optimizer.schedule",
    "gradient_clipping": "optimizer.clip",
}


# how launchers that set no RANK tell a process how many of its kind there are
FOREIGN_LAUNCHERS = {"SLURM_STEP_NUM_TASKS": "srun", "OMPI_COMM_WORLD_SIZE": "mpirun", "PMI_SIZE": "an MPI launcher"}


def start_process_group(seconds: float = 600.0) -> None:
    """Join the ranks that the launcher started, or be the only one; compiles nothing.

    Args:
        seconds: how long to wait for the others.

    Raises:
        InputError: several processes were started by something that gives them no RANK, not all came, or the port is
            taken.
    """
    if "RANK" not in os.environ:
        for variable, launcher in FOREIGN_LAUNCHERS.items():
            if int(os.environ.get(variable, "1")) > 1:
                raise InputError(
                    f"{launcher} started {os.environ[variable]} processes without RANK, WORLD_SIZE, LOCAL_RANK, "
                    "MASTER_ADDR and MASTER_PORT; set them, or start with `deepspeed train.py`."
                )
        # a bare `python train.py` is a run of one process, not a search for MPI
        os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1")
    if os.environ["WORLD_SIZE"] == "1":
        # nobody else has to know it, and the launcher's own choice is the same for every run on a machine
        os.environ["MASTER_PORT"] = str(free_port())
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    if get_accelerator().device_name() == "cpu":
        # on CPUs DeepSpeed would compile a shared-memory backend for its own collectives: a minute's wait and a
        # compiler, for operations we do not call; without it gloo serves
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    # before the first collective: NCCL takes the current device, which would be the first one for every rank
    get_accelerator().set_device(local_rank())
    try:
        # NCCL wants to know the device
        join(get_accelerator().communication_backend_name(), seconds, device() if device().type == "cuda" else None)
    except DistNetworkError as error:
        if "EADDRINUSE" not in str(error):
            raise
        raise InputError(
            f"Port {os.environ['MASTER_PORT']} is in use, by another run on this machine perhaps; give "
            "`deepspeed --master_port` another."
        ) from None
    deepspeed.init_distributed()


def load_deepspeed_config(path: str | Path | None) -> dict[str, Any]:
    """Read a DeepSpeed JSON (None: the shipped zero2.json) and refuse what would be ignored or contradict the recipe.

    Raises:
        InputError: missing file, malformed JSON, unknown key, or a setting that belongs in the recipe.
    """
    path = shipped("ds_configs") / "zero2.json" if path is None else path
    try:
        config = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError:
        raise InputError(f"DeepSpeed configuration {path} cannot be read; ds_configs/ has one a stage.") from None
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


def complete_config(config: dict[str, Any], recipe: Recipe, devices: int) -> dict[str, Any]:
    """Fill in batch sizes, clipping and precisions that say "auto".

    Raises:
        InputError: batch sizes in the JSON contradict the recipe (spells out the arithmetic), or the device lacks the
            precision or the machine the compiler asked for.
    """
    sentences = recipe.batch.sentences
    share = share_of(sentences, devices, recipe.batch.length_groups)
    batch_keys = {
        "train_batch_size": sentences,
        "train_micro_batch_size_per_gpu": share,
        "gradient_accumulation_steps": 1,
    }
    for key, ours in batch_keys.items():
        theirs = config.get(key, "auto")
        if theirs not in ("auto", ours):
            raise InputError(
                f"DeepSpeed configuration says {key} = {theirs}, but the recipe's batch.sentences = "
                f"{sentences} = {share} sentences per device x {devices} devices x 1 "
                f"accumulation step; remove the key or set it to {ours}."
            )
    lora = recipe.model.lora
    if lora is not None and lora.base == "nf4" and config.get("zero_optimization", {}).get("stage") == 3:
        raise InputError("ZeRO-3 cannot partition the 4-bit weights of model.lora.base nf4; use a stage below 3.")
    if recipe.model.compile:
        check_compile(config.get("zero_optimization", {}).get("stage", 0))
    # ours is torch's AdamW also where optimizer state is offloaded: DeepSpeed's own for CPUs needs a compiler
    defaults = {"steps_per_print": 10**9, "zero_force_ds_cpu_optimizer": False}
    completed = {**defaults, **config, **batch_keys, "gradient_clipping": recipe.optimizer.clip}
    for section in ("bf16", "torch_autocast"):
        if completed.get(section, {}).get("enabled") == "auto":
            completed[section] = {**completed[section], "enabled": native_bfloat16(device())}
    if completed.get("fp16", {}).get("enabled") and not get_accelerator().is_fp16_supported():
        raise InputError(
            f"DeepSpeed configuration asks for fp16, which {get_accelerator().device_name()} devices do not have here; "
            "use torch_autocast with bfloat16, or no reduced precision."
        )
    return completed


@contextmanager
def partitioned_loading(config: dict[str, Any], recipe: Recipe) -> Iterator[None]:
    """Inside, ZeRO-3 partitions what `from_pretrained` loads, layer by layer: no rank ever holds a whole model.

    At other stages nothing changes. An official checkpoint is loaded over whole weights: those are small models.

    Args:
        config: complete.

    Raises:
        InputError: DeepSpeed refuses the configuration.
    """
    if config.get("zero_optimization", {}).get("stage") != 3 or recipe.model.checkpoint is not None:
        yield
        return
    with refusals_explained():
        deepspeed.DeepSpeedConfig(config)
    handle = HfDeepSpeedConfig(config)  # transformers holds it weakly
    try:
        with freed_blocks_returned():
            yield
    finally:
        unset_hf_deepspeed_config()
        del handle


def trained_groups(model: nn.Module) -> tuple[dict[str, nn.Parameter], dict[str, nn.Parameter]]:
    """The trained parameters by name: those that are decayed, and biases and normalisation weights, which are not."""
    decayed: dict[str, nn.Parameter] = {}
    kept: dict[str, nn.Parameter] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            # ZeRO-3 leaves a flat remainder in the place of a parameter, and its shape beside it
            shape = getattr(parameter, "ds_shape", parameter.shape)
            (decayed if len(shape) > 1 else kept)[name] = parameter
    return decayed, kept


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """AdamW over the trained parameters; biases and normalisation weights are not decayed."""
    settings = recipe.optimizer
    decayed, kept = trained_groups(model)
    groups = [
        {"params": list(decayed.values()), "weight_decay": settings.weight_decay},
        {"params": list(kept.values()), "weight_decay": 0.0},
    ]
    # the recipe's learning rate is set before every step, as a function of the step
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=0.0, betas=settings.betas, eps=settings.eps, fused=True)


def initialize(model: nn.Module, recipe: Recipe, config: dict[str, Any]) -> Any:
    """The DeepSpeed engine around `model`; `config` is complete.

    Raises:
        InputError: DeepSpeed refuses the configuration.
    """
    for parameter in model.parameters():
        # a base that is held in fewer bits: a parameter that ZeRO-3 has partitioned changes its dtype without its part
        if hasattr(parameter, "ds_tensor") and parameter.ds_tensor.dtype != parameter.dtype:
            parameter.ds_tensor.data = parameter.ds_tensor.data.to(parameter.dtype)
    if device().type == "cpu":
        keep_freed_blocks()
    with refusals_explained():
        engine, *_ = deepspeed.initialize(
            model=model, optimizer=make_optimizer(model, recipe), config=config, dist_init_required=False
        )
    if engine.zero_optimization_stage() == 0 and world_size() == 1:
        engine.enable_backward_allreduce = False  # it would copy all gradients twice to average them with nobody's
    return engine


@contextmanager
def refusals_explained(what: str = "the configuration") -> Iterator[None]:
    """Inside, what DeepSpeed says against a configuration becomes an InputError in a user's words."""
    try:
        yield
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg'].lower()}" for e in error.errors())
        raise InputError(f"DeepSpeed refuses {what}: {problems}.") from None


def device() -> torch.device:
    """This rank's device."""
    return torch.device(get_accelerator().current_device_name())


def precision(config: dict[str, Any]) -> str:
    """What a completed configuration computes in, in words."""
    for section, words in (("fp16", "float16"), ("bf16", "bfloat16")):
        if config.get(section, {}).get("enabled"):
            return words
    autocast = config.get("torch_autocast", {})
    if autocast.get("enabled"):
        return f"float32 weights, {autocast.get('dtype', 'bfloat16')} products"
    return "float32"


class StepTaken(NamedTuple):
    """What became of a step.

    Attributes:
        norm: of the averaged gradient before clipping, where the engine has it: reading a tensor waits for the device;
            NaN if the engine does not tell.
        applied: False where the gradient was not finite and the weights stayed as they were.
    """

    norm: float | Tensor
    applied: bool


def optimizer_step(engine: Any) -> StepTaken:
    """Take the engine's step, unless the gradient is not finite.

    ZeRO-1 to 3 look at the norm themselves and skip such a step. At stage 0 the engine clips without telling the norm,
    and would apply it.
    """
    norm: float | None = None
    if engine.zero_optimization_stage() == 0:
        trained = [p for p in engine.module.parameters() if p.grad is not None]
        scaler = engine.torch_autocast_z0_gradscaler
        total = torch.nn.utils.get_total_norm([p.grad for p in trained if p.grad is not None])
        norm = float(total) / (scaler.get_scale() if scaler else 1.0)
        if not scaler and not math.isfinite(norm):  # a gradient scaler skips for itself
            engine.zero_grad()
            return StepTaken(norm, False)
    engine.step()
    reported = engine.get_global_grad_norm()
    known = next((value for value in (reported, norm) if value is not None), float("nan"))
    return StepTaken(known, engine.was_step_applied())


def whole_state(module: nn.Module) -> dict[str, Tensor]:
    """`module`'s state dict on the main rank, also where ZeRO-3 has partitioned it; nothing on the others.

    Called on every rank. One parameter at a time is gathered, so that only the main rank comes to hold them all.
    """
    state = {}
    for name, value in module.state_dict(keep_vars=True).items():
        with deepspeed.zero.GatheredParameters([value]):  # does nothing to what is not partitioned
            if is_main():
                state[name] = value.detach().cpu()
    return state
