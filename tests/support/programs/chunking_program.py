"""Compares chunked steps with one graph and one backward pass, in many cases; started by a launcher with any ranks.

    chunking_program.py OUTPUT [--all]     writes {case: result} as JSON

The truth is plain PyTorch: `Objective.step` on the same chunks and seeds, one `backward`, gradients averaged over
ranks, clipped, AdamW. Three optimizer steps, dropout on: DeepSpeed's faults with several backward passes begin with the
second.
"""

from __future__ import annotations

import argparse
import copy
import gc
import itertools
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist

from diffcse_scale.distributed import all_mean, all_sum, is_main, rank, world_size
from diffcse_scale.engine.configuration import complete_config
from diffcse_scale.engine.engine import initialize
from diffcse_scale.engine.launch import device, start_process_group
from diffcse_scale.engine.optimizer import make_optimizer
from diffcse_scale.model.networks import DiffCSENetworks
from diffcse_scale.objective.gradients_in_z import OF_BATCH, OF_CHUNKS
from diffcse_scale.objective.metric import Length
from diffcse_scale.objective.objective import Objective
from diffcse_scale.recipe import Recipe
from diffcse_scale.recipe_file import load_recipe
from diffcse_scale.text.batches import Chunk
from diffcse_scale.training.chunking import ChunkedStep
from tests.support.toys import toy_chunk, toy_model

STEPS = 3
SENTENCES = 12


@dataclass(frozen=True)
class Case:
    """One way to run DeepSpeed, one way to cut the batch, and perhaps a planted fault."""

    stage: int
    overlap: bool = False
    chunk: int = 3
    precision: str = "fp32"
    rtd: bool = True
    projection: str = "batchnorm"
    checkpointing: bool = False
    offload: bool = False
    condition: str = "own"
    fault: str = ""

    def __str__(self) -> str:
        parts = [f"zero{self.stage}", f"chunk{self.chunk}", self.precision]
        flags = {"overlap": self.overlap, "simcse": not self.rtd, "checkpointing": self.checkpointing}
        parts += [name for name, on in {**flags, "offload": self.offload}.items() if on]
        others = (self.projection, self.condition, self.fault)
        return "-".join(parts + [part for part in others if part not in ("", "batchnorm", "own")])

    def recipe(self) -> Recipe:
        """Clipping bites; eps keeps AdamW from making much of gradients that are zero but for rounding."""
        return load_recipe(
            "quickstart",
            [
                f"batch.sentences={SENTENCES}",
                f"batch.chunk={self.chunk}",
                f"objective.rtd_weight={0.3 if self.rtd else 0}",
                f"objective.condition={self.condition}",
                *("optimizer.learning_rate=3e-4", "optimizer.eps=1e-4", "optimizer.clip=0.5"),
                # at 0.05 the rounding of cosines in bfloat16 alone moves a loss by 2%
                "objective.temperature=0.1",
            ],
        )

    def config(self) -> dict[str, Any]:
        """DeepSpeed's, complete."""
        zero: dict[str, Any] = {"stage": self.stage, "overlap_comm": self.overlap}
        if self.stage == 3:
            # else ZeRO-3 leaves small tensors whole and hides mistakes with partitioned ones
            zero["stage3_param_persistence_threshold"] = 0
        if self.offload:
            zero["offload_optimizer"] = {"device": "cpu"}
        autocast = {"enabled": self.precision == "bf16", "dtype": "bfloat16"}
        return complete_config({"zero_optimization": zero, "torch_autocast": autocast}, self.recipe(), world_size())

    def model(self) -> DiffCSENetworks:
        """Dropout on; biases are not zero, so that a difference can be told from a tensor's norm."""
        model = toy_model(self.recipe().objective, self.projection, dropout=0.1)
        if self.checkpointing:
            for network in (model.encoder.backbone, model.discriminator.backbone):
                network.gradient_checkpointing_enable({"use_reentrant": False})
        generator = torch.Generator().manual_seed(5)
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
        return model.to(device())

    def share(self, step: int) -> tuple[list[Chunk], list[torch.Tensor]]:
        """This rank's chunks: of those of all ranks, in turn, as `Batches` deals them."""
        whole, edited = toy_chunk(SENTENCES, seed=step)
        size = self.chunk * world_size()
        runs = torch.arange(SENTENCES).split(size)
        parts = [run.chunk(world_size())[rank()] for run in runs]
        chunks = []
        for number, rows in enumerate(parts):
            tensors = [tensor[rows] for tensor in (whole.input_ids, whole.attention_mask, whole.corrupted_ids)]
            seed = 1000 * step + number * world_size() + rank()
            chunk = Chunk(*tensors, torch.empty(0, dtype=torch.long), whole.row_ids[rows], seed)
            chunks.append(chunk.to(device()))
        return chunks, [edited[rows].to(device()) for rows in parts]


class OtherSeeds(ChunkedStep):
    """The fault: the second pass over a chunk draws other random numbers than the first."""

    def _encode_again(self, chunk: Chunk, *others: Any, **options: Any) -> None:
        self._replay_is_checked = True
        super()._encode_again(replace(chunk, seed=(chunk.seed or 0) + 1), *others, **options)


def numbers_of(objective: Objective, loss: torch.Tensor) -> list[float]:
    """The loss of all ranks, and how long RTD's gradient in z is as a share of InfoNCE's, where they meet."""
    met = {name: float(all_sum(value)) for name, value in objective.gradients.take().items()}
    share = Length(OF_CHUNKS, OF_BATCH).of(met)
    return [float(all_mean(loss)), *([] if share is None else [share])]


def in_one_graph(case: Case) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses and final parameters of plain PyTorch."""
    model, recipe = case.model(), case.recipe()
    optimizer = make_optimizer(model, recipe)
    for group in optimizer.param_groups:
        group["lr"] = recipe.optimizer.learning_rate
    losses, objective = [], Objective(recipe.objective)
    for step in range(STEPS):
        chunks, edited = case.share(step)
        with torch.autocast(device().type, torch.bfloat16, enabled=case.precision == "bf16"):
            loss = model(objective.step, chunks, edited if case.rtd else None).loss
        loss.backward()
        for parameter in model.parameters():
            dist.all_reduce(parameter.grad)
            parameter.grad /= world_size()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.optimizer.clip)
        optimizer.step()
        optimizer.zero_grad()
        losses += numbers_of(objective, loss)
    return losses, {name: parameter.detach() for name, parameter in model.named_parameters()}


def in_chunks(case: Case) -> tuple[list[float], dict[str, torch.Tensor]]:
    """The same by DeepSpeed, one backward pass a chunk."""
    recipe = case.recipe()
    engine = initialize(case.model(), recipe, case.config())
    step_once = (OtherSeeds if case.fault == "seed" else ChunkedStep)(engine, Objective(recipe.objective))
    if case.fault == "untouched":
        step_once._touch_first = step_once._touch_last = False
    for group in engine.optimizer.param_groups:
        group["lr"] = recipe.optimizer.learning_rate
    losses = []
    for step in range(STEPS):
        chunks, edited = case.share(step)
        output = step_once(chunks, edited if case.rtd else None)
        engine.step()
        losses += numbers_of(step_once.objective, output.loss)
    with deepspeed.zero.GatheredParameters(list(engine.module.parameters())):  # does nothing below ZeRO-3
        parameters = {name: copy.deepcopy(parameter.detach()) for name, parameter in engine.module.named_parameters()}
    engine.destroy()
    return losses, parameters


def quick_cases() -> list[Case]:
    """Every stage, feature and fault once."""
    ways = [Case(0, chunk=1), Case(1, overlap=True), Case(2), Case(3), Case(2, precision="bf16"), Case(2, offload=True)]
    ways += [Case(3, condition="other"), Case(2, condition="detached")]
    ways += [Case(2, rtd=False), Case(3, projection="none", checkpointing=True)]
    return [*ways, Case(2, fault="seed"), Case(3, fault="untouched"), Case(1, overlap=True, fault="untouched")]


def all_cases() -> list[Case]:
    """Every stage with every overlap, precision and cut; then one feature at a time, and the faults."""
    grid = itertools.product(range(4), (False, True), (4, 1), ("fp32", "bf16"))
    ways = [Case(stage, overlap, chunk, precision) for stage, overlap, chunk, precision in grid if stage or not overlap]
    ways += [Case(stage, condition=condition) for stage in range(4) for condition in ("other", "detached")]
    for stage in range(4):
        ways += [Case(stage, rtd=False), Case(stage, checkpointing=True), Case(stage, projection="none")]
    ways += [Case(stage, overlap, offload=True) for stage in (1, 2, 3) for overlap in (False, True)]
    faults = [Case(stage, fault="seed") for stage in range(4)]
    faults += [Case(3, fault="untouched"), Case(1, True, fault="untouched")]
    faults += [Case(stage, offload=True, fault="untouched") for stage in (2, 3)]
    return ways + faults


def main() -> None:
    """Run all cases and write the largest difference of each."""
    parser = argparse.ArgumentParser()
    parser.add_argument("output", type=Path)
    parser.add_argument("--all", action="store_true", help="the whole grid instead of each thing once")
    parser.add_argument("--local_rank", type=int)
    arguments = parser.parse_args()
    start_process_group()
    truths: dict[Any, Any] = {}
    results = {}
    for case in all_cases() if arguments.all else quick_cases():
        key = (case.chunk, case.precision, case.rtd, case.projection, case.condition)
        if key not in truths:
            truths[key] = in_one_graph(case)
        losses, parameters = truths[key]
        chunked_losses, chunked = in_chunks(case)
        differences = {
            name: float((chunked[name].float() - truth).norm() / truth.norm()) for name, truth in parameters.items()
        }
        worst = max(differences, key=lambda name: differences[name])
        results[str(case)] = {
            "precision": case.precision,
            "fault": case.fault,
            "losses": chunked_losses,
            "loss_difference": max(abs(a - b) / abs(b) for a, b in zip(chunked_losses, losses, strict=True)),
            "parameter_difference": differences[worst],
            "worst": worst,
        }
        gc.collect()
    if is_main():
        arguments.output.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
