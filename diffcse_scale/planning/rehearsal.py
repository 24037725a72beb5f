"""Rehearses one training step on tensors without data: how many bytes are alive when, and when gradients arrive.

The trainer's own step (`ChunkedStep`, `Objective.step`, `Generator.edit`) runs forward and backward under
`FakeTensorMode`, with an engine that shards nothing. A tensor's size has a fixed part, a part that grows with the
chunk's rows, and a part that grows with the share's rows. Memory is therefore piecewise linear in both, and one or two
more rehearsals are enough for other sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator
from deepspeed.runtime.zero import linear as zero_linear
from diffcse_kernels.reference.blocks import BLOCK_BYTES
from diffcse_kernels.reference.sample_tokens import SAMPLING_ROWS
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional

from diffcse_scale.distributed import imagined_ranks
from diffcse_scale.model.networks import DiffCSENetworks
from diffcse_scale.model.weights import cast_parameters
from diffcse_scale.objective.objective import Objective, Parts
from diffcse_scale.planning.depth import SHALLOW, cut, deepened, equal_layers
from diffcse_scale.planning.live_memory import LiveMemory
from diffcse_scale.planning.moments import Moment, along
from diffcse_scale.planning.shape_networks import Networks
from diffcse_scale.planning.sharding import Sharding
from diffcse_scale.recipe import Recipe
from diffcse_scale.text.batches import Chunk
from diffcse_scale.training.chunking import ChunkedStep

BETWEEN = "embeddings"  # the part of the step outside the engine's passes


class Rehearsal:
    """Moments of a step for any number of sentences: exact for the given sizes, otherwise on a line.

    The lines go through the given sizes and twice as many sentences.

    Args:
        networks: are moved off the meta device and cannot be rehearsed again.
        recipe: only objective, length and masking are used, not its batch.
        share: sentences per device.
        chunk: sentences per chunk, fewer than `share`; None if the share is not cut in chunks.
    """

    def __init__(
        self, networks: Networks, recipe: Recipe, sharding: Sharding, share: int, chunk: int | None = None
    ) -> None:
        self._watched = chunk or share
        self._rest = share - self._watched
        if sharding.weight_dtype is not torch.float32:  # with float32 a frozen base keeps its own dtype
            cast_parameters(networks.model, sharding.weight_dtype)
        asked = recipe.model.generator_precision  # `load_generator` cannot choose a default: it sees no device here
        if networks.generator is not None and asked is None and not sharding.on_cpu:
            cast_parameters(networks.generator.model, torch.bfloat16)
            cast_parameters(networks.generator.head, torch.bfloat16)
        sizes = [(self._watched, self._rest), (2 * self._watched, self._rest)]
        if self._rest:
            sizes.append((self._watched, 2 * self._rest))
        linear = linear_of_zero_3() if sharding.lean_linear else nullcontext()
        # fake tensors behave like CPU tensors but hold no data
        with imagined_ranks(sharding.world_size), FakeTensorMode(allow_non_fake_inputs=True), linear:
            self._base, *self._others = _rehearse(_Stage(networks, recipe, sharding), sizes)

    def moments(self, share: int, chunk: int | None) -> list[Moment]:
        """The step with `share` sentences per device, `chunk` of them at once (None: all)."""
        watched = min(chunk or share, share)
        steps = [watched / self._watched - 1]
        if self._rest:
            steps.append((share - watched) / self._rest - 1)
        return [along(steps, base, others) for base, *others in zip(self._base, *self._others, strict=True)]


def _rehearse(stage: _Stage, sizes: list[tuple[int, int]]) -> list[list[Moment]]:
    """Rehearse steps of these sizes. A deep model is extrapolated from two shallow ones."""
    stacks = equal_layers(stage.module)
    if stacks is None:
        return [stage.rehearse(watched, rest) for watched, rest in sizes]
    steps = []
    for depth in (SHALLOW + 1, SHALLOW):
        cut(stage.module, stacks, depth)
        steps.append([stage.rehearse(watched, rest) for watched, rest in sizes])
    return [deepened(shallow, deeper, stacks) for deeper, shallow in zip(*steps, strict=True)]


@contextmanager
def linear_of_zero_3() -> Iterator[None]:
    """Inside, linear layers are DeepSpeed's for ZeRO-3, whose backward keeps the weight itself and not a copy.

    They ask DeepSpeed for the accelerator to find its autocast state. Here it is the CPU, whatever the machine has.
    """
    before = functional.linear, zero_linear.get_accelerator
    functional.linear, zero_linear.get_accelerator = zero_linear.zero3_linear_wrap, CPU_Accelerator
    try:
        yield
    finally:
        functional.linear, zero_linear.get_accelerator = before


class _Stage:
    """The engine of a rehearsal. It calls the model like DeepSpeed's engine and records the memory in use."""

    def __init__(self, networks: Networks, recipe: Recipe, sharding: Sharding) -> None:
        self.recipe, self.sharding = recipe, sharding
        self.module, self.generator = networks.model, networks.generator
        self._watched: Chunk | None = None
        self.module.to_empty(device="cpu")
        for name, parameter in self.module.named_parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(partial(self._arrived, name))
        self.objective = _Objective(self)
        if self.generator is not None:
            self.generator.model.to_empty(device="cpu")
            self.generator.head.to_empty(device="cpu")
            self.generator.forbidden = torch.zeros_like(self.generator.forbidden, device="cpu")

    def rehearse(self, watched: int, rest: int) -> list[Moment]:
        """Rehearse a step with one watched chunk and, if `rest` is not 0, a second chunk that is not watched."""
        self.memory = LiveMemory()
        self.moments: list[Moment] = []
        self._part, self._held, self._workspace = BETWEEN, 0, 0
        chunks = [self._chunk(sentences) for sentences in (watched, rest) if sentences]
        self._watched = chunks[0]
        with self.memory:
            edited = None
            if self.recipe.objective.rtd_weight > 0:
                edited = [self._edit(chunk) if self.generator else chunk.original_ids for chunk in chunks]
            if rest:
                step = ChunkedStep(self, self.objective)
                step._replay_is_checked = True  # there is no data to check
                step(chunks, edited)
            else:
                self.backward(self(self.objective.step, chunks, edited).loss)
        return self.moments

    # the engine's interface for `ChunkedStep`

    def __call__(self, function: Callable[..., Any], *arguments: Any) -> Any:
        part = function.__name__
        if part == "touch":  # belongs to the pass that is about to run backward
            return self.module(function, *arguments)
        again = part == "encode" and torch.is_grad_enabled()
        goes_back = again or part in ("step", "chunk_terms", "batch_terms")
        is_watched = not isinstance(arguments[0], Chunk) or arguments[0] is self._watched
        self._begin(("encode again" if again else part) if is_watched else None)
        with torch.autocast("cpu", dtype=self.sharding.autocast_dtype, enabled=self.sharding.autocast):
            result = self.module(function, *arguments)
        if not goes_back:
            self._end()
        return result

    def backward(self, loss: Tensor) -> None:
        """Run the backward pass of the last computation."""
        loss.backward()
        self._end()

    def zero_optimization_stage(self) -> int:
        """Always 0, because a stage's own memory is not rehearsed."""
        return 0

    def zero_overlap_comm(self) -> bool:
        """Always False."""
        return False

    def zero_offload_optimizer(self) -> None:
        """Always None: no offload."""

    def set_gradient_accumulation_boundary(self, is_boundary: bool) -> None:
        """Do nothing, because nothing is reduced."""

    # recording

    def _begin(self, part: str | None) -> None:
        self._record()
        self._part, self._held = part or "", self.memory.live

    def _end(self) -> None:
        self._record()
        self._part, self._held = BETWEEN, self.memory.live

    def _arrived(self, name: str, parameter: Tensor) -> None:
        self._record(name)
        parameter.grad = None

    def _record(self, gradient: str | None = None) -> None:
        peak, left = self.memory.peak(), self.memory.live
        if self._part:
            held = max(self._held, peak) if self._part == BETWEEN else self._held
            self.moments.append(Moment(self._part, held, peak, left, self._workspace, gradient))
        self._workspace = 0

    def _edit(self, chunk: Chunk) -> Tensor:
        assert self.generator is not None
        self._begin("edit" if chunk is self._watched else None)
        with self.inside(SAMPLING_ROWS * self.generator.head.out_features * 16):
            edited = self.generator.edit(chunk)
        self._end()
        return edited

    @contextmanager
    def inside(self, size: int) -> Iterator[None]:
        """Account for memory that an operator would allocate internally; under fake tensors it does not."""
        workspace = torch.empty(size, dtype=torch.uint8)
        self._workspace = size
        yield
        del workspace

    def _chunk(self, sentences: int) -> Chunk:
        """A chunk of sentences of the recipe's maximum length."""
        columns = self.recipe.data.columns
        shape = (sentences, 3 if columns is not None and len(columns) == 3 else 2, self.recipe.data.max_length)
        ids = torch.zeros(shape, dtype=torch.int64)
        corrupted = torch.zeros(int(ids.numel() * self.recipe.objective.masking_ratio), dtype=torch.int64)
        return Chunk(ids, torch.ones_like(ids), ids, corrupted, torch.zeros(shape[:2], dtype=torch.int64))


class _Objective(Objective):
    """The recipe's objective plus the memory of InfoNCE's operator: normalized rows and a block of similarities."""

    def __init__(self, stage: _Stage) -> None:
        super().__init__(stage.recipe.objective, stage.recipe.batch.exchange)
        self._stage = stage

    def batch_terms(self, networks: DiffCSENetworks, z: Tensor, chunks: list[Chunk]) -> Parts:
        (rows, width), views = z.shape, chunks[0].views
        keys = rows // views * (views - 1) * self._stage.sharding.world_size
        size = 4 * width * (rows // views + keys) + min(BLOCK_BYTES, 4 * rows // views * keys)
        with self._stage.inside(size):
            return super().batch_terms(networks, z, chunks)
