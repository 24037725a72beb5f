"""Loads a checkpoint into any world size and ZeRO stage: every rank reads its own part from the shards of all ranks.

Nothing is converted on disk. A rank opens only the shards that have elements of its own part, by name and
memory-mapped, and copies these into its optimizer's tensors. So it reads no more than it needs and holds nothing twice.
No rank waits for the main rank, and the folder is never searched. With W shards and V ranks, a rank opens at most
W / V + 3 shards at ZeRO-1 and 2. ZeRO-3 cuts each parameter separately, so there it opens a few more if parameters have
hardly more elements than there are ranks.

DeepSpeed's `ds_to_universal` would write a second checkpoint instead. That checkpoint cannot be moved between ZeRO-3
and the lower stages, does not support ZeRO-0, and lacks buffers such as BatchNorm's running statistics. At ZeRO-3 it
also gives all parameter groups the weight decay of the first.

At ZeRO-1 and 2 the weights come from the shards. The model file does not have them; if one of an earlier version does,
it is ignored. Frozen parameters and learning rates are not read, because the recipe determines both.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple

import torch
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
from torch import Tensor, nn
from tqdm import tqdm

from diffcse_scale.checkpoints.manifest import STATE, read_state
from diffcse_scale.checkpoints.shards import read_shard
from diffcse_scale.distributed import is_main, rank, world_size
from diffcse_scale.engine.optimizer import moments_of, trained_groups
from diffcse_scale.foundation.errors import InputError

WEIGHT = "weight"
MODEL_FILE = "mp_rank_00_model_states.pt"  # at all stages but ZeRO-3


class Piece(NamedTuple):
    """Elements [start, stop) of a flattened parameter, at `offset` in the flat tensors of a rank's group."""

    name: str
    start: int
    stop: int
    offset: int


class Group(NamedTuple):
    """One rank's part of a parameter group.

    Attributes:
        tensors: the float32 weights and the optimizer's moments, each [length]; `pieces` tell where parameters are.
        step: the optimizer's step count, from 1.
    """

    pieces: list[Piece]
    tensors: dict[str, Tensor]
    step: float


def pieces(
    stage: int, numels: Mapping[str, int], paddings: Sequence[int], rank: int, world_size: int, length: int
) -> Iterator[Piece]:
    """Where a group's parameters are in `rank`'s flat tensor.

    ZeRO-3 cuts every parameter into `world_size` parts. ZeRO-1 and 2 lay the parameters end to end and cut the whole.

    Args:
        numels: elements of each parameter, in DeepSpeed's order.
        paddings: elements between each parameter and the next (ZeRO-1 and 2; zero unless `parameter_alignment` is set).
        length: length of a rank's flat tensor, without the last rank's padding.

    Raises:
        InputError: at ZeRO-3, `length` does not fit the other numbers.
    """
    position = 0
    for (name, numel), padding in zip(numels.items(), paddings, strict=True):
        if stage == 3:
            part = -(-numel // world_size)
            start, stop = rank * part, min((rank + 1) * part, numel)
            offset = position
            position += part
        else:
            start, stop = max(0, rank * length - position), min((rank + 1) * length - position, numel)
            offset = position + start - rank * length
            position += numel + padding
        if start < stop:
            yield Piece(name, start, stop, offset)
    if stage == 3 and position != length:
        # MiCS shards over fewer ranks than the world size
        raise InputError(
            f"A ZeRO-3 group has {length} elements per rank, not {position}; resume with the checkpoint's number of "
            "devices and ZeRO stage."
        )


def homes(
    stage: int, numels: Mapping[str, int], paddings: Sequence[int], world_size: int, length: int
) -> Iterator[tuple[str, int, int]]:
    """Each parameter with `first` and `part`: rank (first + i) // part has its element i. Arguments as in `pieces`."""
    position = 0
    for (name, numel), padding in zip(numels.items(), paddings, strict=True):
        yield (name, 0, -(-numel // world_size)) if stage == 3 else (name, position, length)
        position += numel + padding


def load_resharded(engine: Any, folder: Path, saved_stage: int, saved_world_size: int) -> None:
    """Fill the engine's weights, optimizer and buffers from a checkpoint of any layout. Called on every rank.

    The loss scale of fp16 is kept between ZeRO-1, 2 and 3.

    Raises:
        InputError: a file is missing or damaged, or the state cannot be read here (NVMe, or half-precision weights at
            ZeRO-0).
    """
    stage = engine.zero_optimization_stage()
    if not readable(engine, saved_stage):
        raise InputError(
            f"Checkpoint {folder} was saved by {saved_world_size} devices at ZeRO-{saved_stage}, and neither NVMe "
            "offload nor bf16 or fp16 weights at ZeRO-0 can be resumed otherwise; resume it as it was saved."
        )
    optimizer = engine.optimizer if stage == 0 else engine.optimizer.optimizer
    moments = moments_of(optimizer)
    saved = _Saved(folder, saved_stage, saved_world_size, engine.module, moments)
    if stage == 3:
        engine.optimizer.checkpoint_event_prologue()  # partitions parameters that are kept whole
    groups = list(_own_groups(engine, saved.step, optimizer.state, moments))
    _copy(saved, groups)
    saved.copy_buffers(engine.module)
    for counter in ("global_steps", "global_samples", "skipped_steps"):
        setattr(engine, counter, saved.model[counter])
    if stage and saved.scaler is not None:
        engine.optimizer.loss_scaler = saved.scaler
    _refresh_weights(engine)


def load_weights(model: nn.Module, folder: Path) -> None:
    """Fill a model without an engine, in one process, from a checkpoint of any layout. Frozen weights are not read.

    Raises:
        InputError: a file is missing or damaged, or the checkpoint belongs to another model.
    """
    try:
        state = read_state(folder)
    except (OSError, ValueError) as error:
        raise InputError(f"Checkpoint {folder} is damaged: {STATE} cannot be read ({error}).") from None
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if state["zero_stage"] != 3:
        weights = _read(folder, MODEL_FILE)["module"]
        if state["zero_stage"] == 0 or trained.keys() & weights.keys():
            _load_whole(model, trained.keys(), weights, folder)
            return
    saved = _Saved(folder, state["zero_stage"], state["world_size"], model, moments=())
    _copy(saved, [Group([Piece(name, 0, p.numel(), 0)], {WEIGHT: p.data.view(-1)}, 0) for name, p in trained.items()])
    saved.copy_buffers(model)


def _load_whole(model: nn.Module, trained: Set[str], weights: dict[str, Tensor], folder: Path) -> None:
    """Fill `model` from a model file with all weights, as ZeRO-0 and earlier versions write it."""
    try:
        missing, unknown = model.load_state_dict(weights, strict=False)
    except RuntimeError:
        missing, unknown = list(trained), []
    if unknown or trained & set(missing):
        raise InputError(f"Checkpoint {folder} is another model's: its weights do not fit the recipe beside it.")


def readable(engine: Any, saved_stage: int) -> bool:
    """Whether `load_resharded` knows the state's layout in this engine, and in one like it at the saved stage."""
    if 0 in (engine.zero_optimization_stage(), saved_stage) and (engine.fp16_enabled() or engine.bfloat16_enabled()):
        return False
    # stage 1 with bf16 weights and float32 gradients has another optimizer class
    layouts = (torch.optim.Optimizer, DeepSpeedZeroOptimizer, DeepSpeedZeroOptimizer_Stage3)
    return isinstance(engine.optimizer, layouts) and not engine.zero_nvme_offload_optimizer()


def sharded_names(engine: Any) -> set[str]:
    """The parameters whose float32 weights the shards of ZeRO-1 or 2 have completely; empty at other stages."""
    if not isinstance(engine.optimizer, DeepSpeedZeroOptimizer):
        return set()
    return {name for group in engine._get_zero_param_shapes() for name in group}


class _Saved:
    """A memory-mapped checkpoint: its first shard, which determines the layout of all, and the shards asked for."""

    def __init__(self, folder: Path, stage: int, ranks: int, module: nn.Module, moments: Sequence[str]) -> None:
        model_file = "zero_pp_rank_0_mp_rank_00_model_states.pt" if stage == 3 else MODEL_FILE
        self.model = _read(folder, model_file)
        self._folder, self._stage, self._ranks, self._moments = folder, stage, ranks, moments
        self.scaler: Any = None
        self.step = 0.0
        self._parts: dict[str, list[tuple[Piece, dict[str, Tensor]]]] = {}
        self._opened: set[int] = set()
        self._lengths: list[int] = []
        self._homes: dict[str, tuple[int, int]] = {}
        if stage == 0:
            self._add(self._whole(module))
        else:
            self._prefix = "bf16_" if (folder / _shard_name(0, "bf16_")).exists() else ""
            self._open(0)

    def parts(self, piece: Piece) -> list[tuple[Piece, dict[str, Tensor]]]:
        """The pieces and tensors of all shards that have elements of `piece`, perhaps with more of the parameter."""
        if piece.name in self._homes:
            first, part = self._homes[piece.name]
            # min, because another model's parameter may be larger than the saved one
            for r in range((first + piece.start) // part, min((first + piece.stop - 1) // part + 1, self._ranks)):
                self._open(r)
        return self._parts.get(piece.name, [])

    def _open(self, r: int) -> None:
        if r not in self._opened:
            self._opened.add(r)
            self._add(self._shard(r))

    def _add(self, groups: Iterable[Group]) -> None:
        for group in groups:
            self.step = max(self.step, group.step)
            for piece in group.pieces:
                self._parts.setdefault(piece.name, []).append((piece, group.tensors))

    def copy_buffers(self, module: nn.Module) -> None:
        """Copy buffers into `module`, such as BatchNorm's running statistics."""
        buffers = dict(module.named_buffers())
        for name in self.model["buffer_names"]:
            buffers[name].copy_(self.model["module"][name])

    def _whole(self, module: nn.Module) -> Iterator[Group]:
        """Every parameter of a ZeRO-0 checkpoint, each as its own group."""
        names = [name for group in trained_groups(module) for name in group.parameters]
        states = self.model["optimizer"]["state"]
        for index, name in enumerate(names):
            values = {WEIGHT: self.model["module"][name], **{key: states[index][key] for key in self._moments}}
            tensors = {key: value.reshape(-1) for key, value in values.items()}
            yield Group([Piece(name, 0, len(tensors[WEIGHT]), 0)], tensors, float(states[index]["step"]))

    def _shard(self, r: int) -> Iterator[Group]:
        stage = self._stage
        shard = _read(self._folder, _shard_name(r, self._prefix))["optimizer_state_dict"]
        weights = shard["fp32_flat_groups" if stage == 3 else "single_partition_of_fp32_groups"]
        optimizer = shard["optimizer_state_dict" if stage == 3 else "base_optimizer_state"]
        states = optimizer["state"] if isinstance(optimizer, dict) else dict(enumerate(optimizer))
        if r == 0:
            # the first shard gives the lengths: it has no padding, and the last one is saved without its padding
            self._lengths, self.scaler = [len(weight) for weight in weights], shard["loss_scaler"]
        for g, (shapes, length) in enumerate(zip(self.model["param_shapes"], self._lengths, strict=True)):
            numels = {name: shape.numel() for name, shape in shapes.items()}
            paddings = [0] * len(numels) if stage == 3 else shard["param_alignment_paddings"][g]
            layout = stage, numels, paddings
            if r == 0:
                self._homes |= {name: (first, part) for name, first, part in homes(*layout, self._ranks, length)}
            # the optimizer has no state until a step was not skipped
            state = states.get(g) or {"step": 0.0, **{key: torch.zeros_like(weights[g]) for key in self._moments}}
            tensors = {WEIGHT: weights[g], **{key: state[key] for key in self._moments}}
            yield Group(list(pieces(*layout, r, self._ranks, length)), tensors, float(state["step"]))


def _shard_name(rank: int, prefix: str) -> str:
    return f"{prefix}zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"


def _read(folder: Path, name: str) -> dict[str, Any]:
    try:
        return read_shard(folder / name, mmap=True)
    except (ValueError, OSError, RuntimeError, UnpicklingError) as error:
        problem = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({error})"
        raise InputError(f"Checkpoint {folder} is damaged: {name} {problem}.") from None


def _own_groups(engine: Any, step: float, states: Any, moments: Sequence[str]) -> Iterator[Group]:
    """This rank's tensors; the optimizer's moments are allocated in `states`."""
    stage, optimizer = engine.zero_optimization_stage(), engine.optimizer
    if stage == 0:
        trained = [named for group in trained_groups(engine.module) for named in group.parameters.items()]
        names = [{name: parameter.numel()} for name, parameter in trained]
        weights = [parameter for _, parameter in trained]
    else:
        shapes = engine._get_zero_param_shapes()
        names = [{name: shape.numel() for name, shape in group.items()} for group in shapes]
        weights = optimizer.fp32_partitioned_groups_flat if stage == 3 else optimizer.single_partition_of_fp32_groups
    for g, (numels, weight) in enumerate(zip(names, weights, strict=True)):
        state = states[weight]
        state["step"] = torch.tensor(step, dtype=torch.float32, device=weight.device)
        for key in moments:
            state[key] = torch.zeros_like(weight)
        paddings = optimizer.round_robin_bit16_padding[g] if stage in (1, 2) else [0] * len(numels)
        own = (rank(), world_size()) if stage else (0, 1)
        tensors = {WEIGHT: weight.data.view(-1), **{key: state[key].view(-1) for key in moments}}
        yield Group(list(pieces(stage, numels, paddings, *own, weight.numel())), tensors, step)


def _copy(saved: _Saved, groups: list[Group]) -> None:
    bar = tqdm(
        [(piece, group.tensors) for group in groups for piece in group.pieces],
        desc="Reading checkpoint", unit="parameter", disable=not is_main(),
    )  # fmt: skip
    for piece, tensors in bar:
        missing = piece.stop - piece.start
        for part, values in saved.parts(piece):
            start, stop = max(piece.start, part.start), min(piece.stop, part.stop)
            if start >= stop:
                continue
            for key, tensor in tensors.items():
                into = tensor.narrow(0, piece.offset + start - piece.start, stop - start)
                into.copy_(values[key].narrow(0, part.offset + start - part.start, stop - start))
            missing -= stop - start
        if missing:
            raise InputError(f"The checkpoint lacks {missing} elements of {piece.name}; it is another model's.")


def _refresh_weights(engine: Any) -> None:
    """Update the weights that the model computes with from the optimizer's float32 weights."""
    optimizer = engine.optimizer
    if engine.zero_optimization_stage() == 3:
        for group in range(len(optimizer.fp32_partitioned_groups_flat)):
            optimizer._reassign_or_swap_out_partitioned_parameters(group)
        optimizer.checkpoint_event_epilogue()  # gathers parameters that are kept whole again
    elif engine.zero_optimization_stage() > 0:
        optimizer.update_lp_params()
