"""Times a cell's training step, in separate processes."""

from __future__ import annotations

import importlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import multiprocessing, nn
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModel, AutoModelForMaskedLM

from diffcse_scale.benchmark.cells import batches_of, configurations, tokenizers_of
from diffcse_scale.benchmark.grid import MAKERS, Cell, check_implementation
from diffcse_scale.benchmark.matmul_rate import matmul_rate
from diffcse_scale.benchmark.phases import PHASES, Phases
from diffcse_scale.distributed import all_max, barrier
from diffcse_scale.engine.configuration import complete_config
from diffcse_scale.engine.engine import initialize, optimizer_step
from diffcse_scale.engine.launch import device as own_device
from diffcse_scale.engine.launch import start_process_group
from diffcse_scale.foundation.errors import InputError
from diffcse_scale.foundation.ownership import WRITTEN_BY
from diffcse_scale.foundation.randomness import seed_everything
from diffcse_scale.foundation.strict_json import to_json
from diffcse_scale.model.arithmetic import step_flop
from diffcse_scale.model.compiled import compile_networks
from diffcse_scale.model.generator import Generator
from diffcse_scale.model.networks import DiffCSENetworks
from diffcse_scale.model.packing import allow_packing
from diffcse_scale.model.weights import cast_parameters, without_pooler
from diffcse_scale.rendezvous import free_port, leave
from diffcse_scale.runs.metrics import memory_gb, peak_memory_gb
from diffcse_scale.text.batches import Batch
from diffcse_scale.text.tokenizers import special_ids
from diffcse_scale.training.step import TrainingStep

COMMAND = "diffcse-scale benchmark"
# glibc gets blocks of at least so many bytes from the system directly, and returns them at once
MMAP_LIMIT = "MALLOC_MMAP_THRESHOLD_"


class Networks(NamedTuple):
    """The networks with random weights, in float32."""

    model: DiffCSENetworks
    generator: Generator | None


class Step(NamedTuple):
    """A training step, and a function that prepares batches one ahead."""

    compute: Callable[[Batch], None]
    ahead: Callable[[Iterator[Batch]], Iterator[Batch]] = iter


def maker(implementation: str) -> Callable[[Cell, Networks, torch.device, Phases], Step]:
    """The function that makes an implementation's step.

    Raises:
        InputError: the implementation does not exist, or is a baseline and this is not a checkout.
    """
    check_implementation(implementation)
    module, _, function = MAKERS[implementation].partition(":")
    try:
        made: Callable[[Cell, Networks, torch.device, Phases], Step] = getattr(
            importlib.import_module(module), function
        )
    except ModuleNotFoundError as error:
        raise InputError(
            f"The baseline {implementation} needs {error.name}; run `python -m diffcse_scale benchmark step` in a "
            "checkout of this project, with its dependencies for development."
        ) from None
    return made


def our_step(cell: Cell, networks: Networks, device: torch.device, phases: Phases) -> Step:
    """The trainer's own step."""
    recipe, model, generator = cell.recipe(), networks.model, networks.generator
    networks_of: dict[str, list[nn.Module]] = {"encoder": [model.encoder], "loss": [model.projection]}
    if generator is not None:
        networks_of["discriminator"] = [model.discriminator, model.rtd_head]
    for name, modules in networks_of.items():
        for module in modules:
            phases.wrap(module, "forward", name)
    config = complete_config(cell.deepspeed_config(), recipe, cell.ranks)
    engine = initialize(model, recipe, config)
    for group in engine.optimizer.param_groups:
        group["lr"] = recipe.optimizer.learning_rate
    if cell.compiled:
        compile_networks(model, generator)
    phases.wrap(engine, "backward", "backward")
    if generator is not None:
        phases.wrap(generator, "edit", "generator")
    compute = TrainingStep(engine, generator, recipe)
    phases.wrap(compute.objective, "batch_terms", "loss")

    def step(batch: Batch) -> None:
        compute(batch)
        with phases.phase("optimizer"):
            optimizer_step(engine)

    return Step(step, compute.ahead)


def measure(cell: Cell, steps: int, warmup: int = 1, trace: Path | None = None) -> dict[str, Any]:
    """Measure a cell. Returns a row: the cell, and medians over `steps` steps.

    Times are in seconds, memory is in GB (1e9 bytes) of the rank that used most, rates are for all ranks together.
    """
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder, "row.json")
        place = {"WORLD_SIZE": str(cell.ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        with _allocator(cell):
            multiprocessing.spawn(_rank, (cell, steps, warmup, trace, place, result), nprocs=cell.ranks)
        row: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
    return row


@contextmanager
def _allocator(cell: Cell) -> Iterator[None]:
    """Set glibc's limit for the processes that are started inside, because it is read when a process starts."""
    before = os.environ.get(MMAP_LIMIT)
    if cell.returns_memory:
        os.environ[MMAP_LIMIT] = "1048576"
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(MMAP_LIMIT, None)
        else:
            os.environ[MMAP_LIMIT] = before


def _rank(
    rank: int, cell: Cell, steps: int, warmup: int, trace: Path | None, place: dict[str, str], result: Path
) -> None:
    os.environ.update(place, RANK=str(rank), LOCAL_RANK=str(rank))
    cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(max(1, cores // cell.ranks))
    start_process_group()
    device = own_device()
    peak_rate = matmul_rate(torch.bfloat16 if cell.precision == "bf16" else torch.float32, device)
    phases = Phases(device)
    if cell.ranks > 1:
        phases.wrap_collectives()
    networks = build(cell, device)
    batches = batches_of(cell, rank)
    flop = step_flop(*networks, batches.batch(0))
    step = maker(cell.implementation)(cell, networks, device, phases)
    with batches.prefetch(0, warmup + 2 * steps + 1) as prefetched:
        ready = step.ahead(prefetched)

        def timed(count: int) -> tuple[list[dict[str, float]], list[int], list[float]]:
            """For each of the next steps: seconds by phase, this rank's real tokens, and its memory after the step."""
            seconds, tokens, memory = [], [], []
            for _ in range(count):
                barrier()
                phases.start()
                with phases.phase("data"):
                    batch = next(ready)
                step.compute(batch)
                seconds.append(phases.stop())
                tokens.append(sum(int(chunk.attention_mask.sum()) for chunk in batch.chunks))
                memory.append(memory_gb(device))
            return seconds, tokens, memory

        timed(warmup)
        phases.waits = False
        found, real, memory = timed(steps)
        seconds = [sum(one.values()) for one in found]
        if device.type == "cuda":  # on a CPU the phases are right already
            phases.waits = True
            found, *_ = timed(steps)
        peak, *memory = all_max(torch.tensor([peak_memory_gb(device), *memory], device=device)).tolist()
        if trace is not None:
            _trace(step, ready, trace if rank == 0 else None)
    if rank == 0:
        typical = median(seconds)
        row = {
            **asdict(cell),
            "step_seconds": typical,
            "all_step_seconds": seconds,
            "phases": {name: median(one[name] for one in found) for name in PHASES},
            "sentences_per_second": cell.sentences / typical,
            "real_tokens_per_second": median(real) * cell.ranks / typical,
            "step_teraflop": flop * cell.ranks / 1e12,
            "matmul_teraflop_per_second": peak_rate * cell.ranks / 1e12,
            "utilisation": flop / typical / peak_rate,
            "peak_memory_gb": peak,
            "memory_gb": memory[-1],
            "all_memory_gb": [round(value, 3) for value in memory],
            "threads": torch.get_num_threads(),
        }
        result.write_text(to_json(row), encoding="utf-8")
    barrier()
    leave()


def build(cell: Cell, device: torch.device) -> Networks:
    """The cell's networks, the same for every implementation."""
    seed_everything(0)
    encoder_config, generator_config = configurations(cell.backbone)
    recipe = cell.recipe()
    backbone = without_pooler(AutoModel.from_config(encoder_config))
    if cell.ours and cell.packed:
        allow_packing(backbone)
    model = DiffCSENetworks(backbone, recipe.objective).train()
    generator = None
    if cell.rtd_weight > 0:
        network = AutoModelForMaskedLM.from_config(generator_config)
        if cell.ours and cell.packed:
            allow_packing(network)
        if cell.generator_precision == "bf16":
            cast_parameters(network, torch.bfloat16)
        special = special_ids(tokenizers_of(cell).discriminator)
        generator = Generator(network.to(device), recipe.objective.fidelity, special, seed=0)
    return Networks(model.to(device), generator)


def _trace(step: Step, batches: Iterator[Batch], file: Path | None) -> None:
    """Profile one more step on all ranks. The rank with a file writes its trace."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
    with profile(activities=activities) as profiled:
        step.compute(next(batches))
        profiled.add_metadata(WRITTEN_BY, COMMAND)  # only works before the profile ends
    if file is not None:
        profiled.export_chrome_trace(str(file))


def is_trace(file: Path) -> bool:
    """Whether a file is a trace that this command wrote."""
    return f'"{WRITTEN_BY}": "{COMMAND}"' in file.read_text(encoding="utf-8", errors="replace")
