"""What ranks on CPUs really send in a training step of small networks, by collective, dtype and number of ranks."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import deepspeed
import deepspeed.ops
import torch
import torch.distributed as dist

from diffcse_scale.distributed import collectives, rank, world_size
from diffcse_scale.engine.configuration import complete_config
from diffcse_scale.engine.engine import initialize, optimizer_step
from diffcse_scale.model.lora import add_adapters
from diffcse_scale.model.networks import DiffCSENetworks
from diffcse_scale.objective.objective import Objective
from diffcse_scale.recipe import LoraRecipe, Recipe
from diffcse_scale.recipe_file import load_recipe
from diffcse_scale.text.batches import Chunk
from diffcse_scale.training.chunking import ChunkedStep
from tests.support.toys import toy_chunk, toy_model

SENTENCES = 12
STEPS = 3  # DeepSpeed records which module comes when in the first, and makes use of it from the next on

Sent = Counter[tuple[str, str, int]]  # collective, dtype, ranks: bytes of the whole tensor


@dataclass(frozen=True)
class Case:
    """One way to train the toy networks."""

    zero: dict[str, Any]
    autocast: bool = True
    chunk: int | None = None
    rtd: bool = True
    checkpointing: bool = False
    lora: bool = False  # on a frozen base in bfloat16

    def recipe(self) -> Recipe:
        """Its recipe; the networks are built by `model`."""
        chunk = [] if self.chunk is None else [f"batch.chunk={self.chunk}"]
        recipe = load_recipe(
            "quickstart", [f"batch.sentences={SENTENCES}", f"objective.rtd_weight={0.3 if self.rtd else 0}", *chunk]
        )
        batch = recipe.batch.model_copy(update={"chunk": self.chunk})
        model = recipe.model.model_copy(update={"gradient_checkpointing": self.checkpointing})
        return recipe.model_copy(update={"batch": batch, "model": model})

    def config(self) -> dict[str, Any]:
        """DeepSpeed's, not yet complete."""
        return {"zero_optimization": self.zero, "torch_autocast": {"enabled": self.autocast, "dtype": "bfloat16"}}

    def model(self) -> DiffCSENetworks:
        """Two layers an encoder, width 32."""
        model = toy_model(self.recipe().objective, dropout=0.1)
        if self.lora:
            add_adapters(model.encoder.backbone, LoraRecipe(rank=2, alpha=4, dropout=0.0, base="bfloat16"))
        if self.checkpointing:
            backbones = [model.encoder.backbone, *([model.discriminator.backbone] if self.rtd else [])]
            for backbone in backbones:
                backbone.gradient_checkpointing_enable({"use_reentrant": False})
        return model


@dataclass
class Counted:
    """Counts all collectives of this process while it is entered."""

    sent: Sent = field(default_factory=Counter)

    def __enter__(self) -> Counted:
        for module, name in collectives():
            setattr(module, name, self._counting(name, getattr(module, name)))
        return self

    def __exit__(self, *error: object) -> None:
        """The process ends with its work."""

    def _counting(self, name: str, collective: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            # the largest is the whole one; lists are of `all_gather`, which is handed one rank's part beside
            tensors = [value for value in (*arguments, *options.values()) if isinstance(value, torch.Tensor)]
            if tensors:  # a barrier has none
                largest = max(tensors, key=torch.Tensor.numel)
                ranks = dist.get_world_size(options.get("group"))
                whole = largest.nbytes * (ranks if name == "all_gather" else 1)
                self.sent[name, str(largest.dtype).removeprefix("torch."), ranks] += whole
            return collective(*arguments, **options)

        return call


def count(case: Case) -> Sent:
    """What one rank of a process group sends in the last of `STEPS` steps."""
    os.environ["DS_ACCELERATOR"] = "cpu"
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    with Counted() as counted:  # before DeepSpeed takes the functions for its own
        deepspeed.init_distributed()
        recipe = case.recipe()
        engine = initialize(case.model(), recipe, complete_config(case.config(), recipe, world_size()))
        objective = Objective(recipe.objective, recipe.batch.exchange)
        for step in range(STEPS):
            counted.sent.clear()
            chunks, edited = _share(case, step)
            if case.chunk is not None:
                ChunkedStep(engine, objective)(chunks, edited)
            else:
                output = engine(objective.step, chunks, edited)
                engine.backward(output.loss)
            optimizer_step(engine)
    return Counter(counted.sent)


def _share(case: Case, step: int) -> tuple[list[Chunk], list[torch.Tensor] | None]:
    """This rank's chunks, and what the generator made of them."""
    whole, edited = toy_chunk(SENTENCES, seed=step)
    share = SENTENCES // world_size()
    parts = (torch.arange(share) + rank() * share).split(case.chunk or share)
    chunks = []
    for rows in parts:
        ids, mask, corrupted = (t[rows] for t in (whole.input_ids, whole.attention_mask, whole.corrupted_ids))
        chunks.append(Chunk(ids, mask, corrupted, torch.empty(0, dtype=torch.long), whole.row_ids[rows], step))
    return chunks, [edited[rows] for rows in parts] if case.rtd else None
