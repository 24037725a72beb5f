"""One training step on tensors without numbers: which bytes are alive when, and when each gradient arrives.

The trainer's own step (`ChunkedStep`, `Objective.step`, `Generator.edit`) runs forward and backward under
`FakeTensorMode`, with an engine that shards nothing. Every tensor has a fixed part, a part that grows with the chunk's
rows, and one with the share's, so that what is seen is piecewise linear in both, and one or two more rehearsals tell
about other sizes.
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

BETWEEN = "embeddings"  # the part of the step outside of the engine's passes


class Rehearsal:
    """Moments of a step for any number of sentences: exact for those given, and along lines to twice as many.

    Args:
        networks: are moved off the meta device, and cannot be rehearsed a second time.
        recipe: objective, length and masking are used; not its batch.
        share: sentences of a device.
        chunk: fewer, where a share is cut in chunks; None where it is not.
    """

    def __init__(
        self, networks: Networks, recipe: Recipe, sharding: Sharding, share: int, chunk: int | None = None
    ) -> None:
        self._watched = chunk or share
        self._rest = share - self._watched
        if sharding.weight_dtype is not torch.float32:  # else a frozen base keeps its own
            cast_parameters(networks.model, sharding.weight_dtype)
        asked = recipe.model.generator_precision  # `load_generator` does as it is told, and here knows no device
        if networks.generator is not None and asked is None and not sharding.on_cpu:
            cast_parameters(networks.generator.model, torch.bfloat16)
            cast_parameters(networks.generator.head, torch.bfloat16)
        sizes = [(self._watched, self._rest), (2 * self._watched, self._rest)]
        if self._rest:
            sizes.append((self._watched, 2 * self._rest))
        linear = linear_of_zero_3() if sharding.lean_linear else nullcontext()
        # tensors that behave as a CPU's and hold nothing
        with imagined_ranks(sharding.world_size), FakeTensorMode(allow_non_fake_inputs=True), linear:
            self._base, *self._others = _rehearse(_Stage(networks, recipe, sharding), sizes)

    def moments(self, share: int, chunk: int | None) -> list[Moment]:
        """The step of `share` sentences a device, `chunk` of them at once (None: all)."""
        watched = min(chunk or share, share)
        steps = [watched / self._watched - 1]
        if self._rest:
            steps.append((share - watched) / self._rest - 1)
        return [along(steps, base, others) for base, *others in zip(self._base, *self._others, strict=True)]


def _rehearse(stage: _Stage, sizes: list[tuple[int, int]]) -> list[list[Moment]]:
    """Steps of these sizes; of a deep model from two shallow ones."""
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
    """Inside, linear layers are DeepSpeed's for ZeRO-3, of which backward keeps the weight itself and no copy of it.

    They ask which device's autocast they are in: here a CPU's, whatever the machine has.
    """
    before = functional.linear, zero_linear.get_accelerator
    functional.linear, zero_linear.get_accelerator = zero_linear.zero3_linear_wrap, CPU_Accelerator
    try:
        yield
    finally:
        functional.linear, zero_linear.get_accelerator = before


class _Stage:
    """The engine of a rehearsal: it calls the model as DeepSpeed's does, and writes down what is alive."""

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
        """A step of one chunk that is watched and, if there is a rest, of another that is not."""
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
                step._replay_is_checked = True  # there are no numbers to check
                step(chunks, edited)
            else:
                self.backward(self(self.objective.step, chunks, edited).loss)
        return self.moments

    # what `ChunkedStep` asks of an engine

    def __call__(self, function: Callable[..., Any], *arguments: Any) -> Any:
        part = function.__name__
        if part == "touch":  # belongs to the pass that is about to go back
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
        """The pass back from what was computed last."""
        loss.backward()
        self._end()

    def zero_optimization_stage(self) -> int:
        """0: what a stage adds is not rehearsed."""
        return 0

    def zero_overlap_comm(self) -> bool:
        """No."""
        return False

    def zero_offload_optimizer(self) -> None:
        """None."""

    def set_gradient_accumulation_boundary(self, is_boundary: bool) -> None:
        """Nothing is reduced."""

    # what is written down

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
        """Memory of an operator that one without numbers does not take."""
        workspace = torch.empty(size, dtype=torch.uint8)
        self._workspace = size
        yield
        del workspace

    def _chunk(self, sentences: int) -> Chunk:
        """Sentences as long as the recipe allows."""
        columns = self.recipe.data.columns
        shape = (sentences, 3 if columns is not None and len(columns) == 3 else 2, self.recipe.data.max_length)
        ids = torch.zeros(shape, dtype=torch.int64)
        corrupted = torch.zeros(int(ids.numel() * self.recipe.objective.masking_ratio), dtype=torch.int64)
        return Chunk(ids, torch.ones_like(ids), ids, corrupted, torch.zeros(shape[:2], dtype=torch.int64))


class _Objective(Objective):
    """The recipe's, with the memory that InfoNCE's operator takes: normalised rows, and a block of similarities."""

    def __init__(self, stage: _Stage) -> None:
        super().__init__(stage.recipe.objective, stage.recipe.batch.exchange)
        self._stage = stage

    def batch_terms(self, networks: DiffCSENetworks, z: Tensor, chunks: list[Chunk]) -> Parts:
        (rows, width), views = z.shape, chunks[0].views
        keys = rows // views * (views - 1) * self._stage.sharding.world_size
        size = 4 * width * (rows // views + keys) + min(BLOCK_BYTES, 4 * rows // views * keys)
        with self._stage.inside(size):
            return super().batch_terms(networks, z, chunks)
