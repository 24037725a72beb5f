"""The training step of small networks on an imagined GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from diffcse_scale.distributed import imagined_ranks
from diffcse_scale.engine.engine import move_buffers
from diffcse_scale.model.generator import Generator
from diffcse_scale.model.networks import DiffCSENetworks
from diffcse_scale.model.packing import allow_packing
from diffcse_scale.model.weights import cast_parameters
from diffcse_scale.objective.objective import StepOutput
from diffcse_scale.recipe import Recipe
from diffcse_scale.recipe_file import load_recipe
from diffcse_scale.runs.metrics import Window
from diffcse_scale.text.batches import Batch, make_chunk
from diffcse_scale.text.corruption import Corruption
from diffcse_scale.training.nonfinite import Buffers
from diffcse_scale.training.step import TrainingStep
from tests.support.imagined_gpu import GPU, ImaginedGPU
from tests.support.tiny_models import DECODER_FAMILIES, WIDE, tiny_backbone, tiny_masked_lm, tiny_tokenizer

ROWS = {  # how rows are laid out: what a recipe says about it
    "packed": ("objective.fidelity=sampled",),
    "padded": ("objective.fidelity=sampled", "batch.packed=false"),
    "official": ("objective.fidelity=official",),
}
LONGEST = 12
SENTENCES = 12  # of both ranks
# what the host waits for inside transformers
LIBRARYS_CONSTANT = (
    "deberta_v2/modeling_deberta_v2.py: make_log_bucket_position: a copy from the host that is not non_blocking"
)
LIBRARYS_LOOK = "transformers/masking_utils.py: _ignore_bidirectional_mask_sdpa: _local_scalar_dense reads a number"


class ForwardEngine:
    """What a step asks of DeepSpeed, less the backward pass: what waits for a gradient gets one of its shape.

    As at ZeRO-3, where a chunked step asks for most.
    """

    def __init__(self, module: DiffCSENetworks, autocast: bool) -> None:
        self.module, self._autocast = module, autocast
        self._leaves: list[Tensor] = []

    def __call__(self, function: Callable[..., Any], *arguments: Any) -> Any:
        self._leaves += [one for one in arguments if isinstance(one, Tensor) and one.is_leaf and one.requires_grad]
        with torch.autocast("cuda", torch.bfloat16, enabled=self._autocast):
            return self.module(function, *arguments)

    def backward(self, loss: Tensor) -> None:
        assert loss.requires_grad and loss.device == GPU and loss.dim() == 0
        for leaf in self._leaves:
            leaf.grad = torch.zeros_like(leaf)

    def zero_optimization_stage(self) -> int:
        return 3

    def zero_overlap_comm(self) -> bool:
        return True

    def zero_offload_optimizer(self) -> None:
        return None

    def set_gradient_accumulation_boundary(self, is_boundary: bool) -> None:
        """Nothing is reduced."""


def step_recipe(rows: str, *overrides: str) -> Recipe:
    """The quickstart's objective with DiffCSE's projection, rows laid out as `ROWS` says."""
    return load_recipe("quickstart", ["model.projection=batchnorm", *ROWS[rows], *overrides])


def batch(number: int, recipe: Recipe, two_tokenizers: bool = False, views: int = 2) -> Batch:
    """Two chunks of three sentences of different lengths."""
    draw = np.random.default_rng(number)
    corruption = Corruption.of(tiny_tokenizer(), 0.3, 1) if recipe.objective.rtd_weight > 0 else None
    chunks = []
    for chunk in range(2):
        streams = []
        for _ in range(1 + two_tokenizers):
            lengths = draw.integers(4, LONGEST + 1, (3, views))
            streams.append((draw.integers(5, 20, (3, views, lengths.max())), lengths))
        rows = np.arange(3 * views).reshape(3, views)
        chunks.append(replace(make_chunk(streams, rows, corruption, recipe.packed), seed=chunk))
    return Batch(number, 0, chunks, SENTENCES)


class RehearsedStep:
    """Encoder, discriminator, projection and generator of a family, on the GPU, and their step.

    A decoder has a BERT with another tokenizer as discriminator and generator.

    Args:
        precision: of the weights, or "autocast" for float32 with products in bfloat16.
    """

    def __init__(self, gpu: ImaginedGPU, family: str, recipe: Recipe, precision: str = "autocast") -> None:
        self.gpu, self.recipe, self.mapped = gpu, recipe, family in DECODER_FAMILIES
        judge = "bert" if self.mapped else family
        with gpu.building():
            backbone = tiny_backbone(family, **WIDE.get(family, {}))
            discriminator = tiny_backbone(judge, **WIDE.get(judge, {}))
            editor = tiny_masked_lm(judge, **WIDE.get(judge, {}))
            for network in (backbone, discriminator, editor):
                allow_packing(network)
            pooling = "last" if self.mapped else "cls"
            model = DiffCSENetworks(
                backbone, recipe.objective, pooling, recipe.model.projection, discriminator, self.mapped
            )
            if precision != "autocast":
                cast_parameters(model, getattr(torch, precision))
            cast_parameters(editor, torch.bfloat16)
            self.model = model.train().to(GPU)
            move_buffers(model, GPU)
            self.generator = Generator(editor.to(GPU), recipe.objective.fidelity, tiny_tokenizer().all_special_ids, 0)
            self._precision, self._window = precision, Window()

    def training_step(self, chunked: bool = False) -> TrainingStep:
        """The product's, at the first step of a run."""
        sizes = self.recipe.batch.model_copy(update={"sentences": SENTENCES, "chunk": 3 if chunked else None})
        recipe = self.recipe.model_copy(update={"batch": sizes})
        return TrainingStep(ForwardEngine(self.model, self._precision == "autocast"), self.generator, recipe)

    def take(self, step: TrainingStep, count: int = 1, views: int = 2) -> list[StepOutput]:
        """So many steps, with the generator ahead, and what the loop does with their output."""
        batches = [batch(number, self.recipe, self.mapped, views) for number in range(count)]
        outputs = []
        for one in step.ahead(batches):
            Buffers(self.model)
            outputs.append(step(one))
            self._window.add(outputs[-1], one.sentences, 0, 0)
        return outputs


@contextmanager
def rehearsal(*meant: str) -> Iterator[ImaginedGPU]:
    """Inside, this is the first of two ranks, with a GPU; the host may wait for it where that is `meant`."""
    with (
        patch("diffcse_scale.training.step.device", lambda: GPU),
        imagined_ranks(2),
        ImaginedGPU(*meant) as gpu,
    ):
        yield gpu
