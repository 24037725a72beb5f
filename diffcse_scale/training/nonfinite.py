"""Diagnoses steps with a loss or gradient that is not finite: which module and which parameters are affected first.

A skipped step changes neither weights nor optimizer nor BatchNorm statistics. So a run that stops after several skipped
steps still has the weights from before the first of them. It saves them as the checkpoint before that step.
`diagnose` computes the step again and finds where the numbers stop being finite. `diffcse-scale replay` does the same
again from that checkpoint, in new processes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import deepspeed
import torch
from torch import Tensor, nn

from diffcse_scale.distributed import gather_objects, rank
from diffcse_scale.engine.optimizer import trained_groups
from diffcse_scale.foundation import run_files
from diffcse_scale.foundation.durable import write_durably
from diffcse_scale.foundation.strict_json import to_json
from diffcse_scale.objective.objective import TERMS, StepOutput
from diffcse_scale.text.batches import Batch, Batches


class Buffers:
    """A copy of the module's buffers (BatchNorm statistics) before a step, to restore them if the step is skipped."""

    def __init__(self, module: nn.Module) -> None:
        self._saved = [(buffer, buffer.detach().clone()) for buffer in module.buffers()]

    def put_back(self) -> None:
        """Restore the buffers."""
        for buffer, saved in self._saved:
            buffer.copy_(saved)


def diagnose(model: nn.Module, compute: Callable[[], StepOutput], batch: Batch, batches: Batches) -> dict[str, Any]:
    """Compute a step again and find where its numbers stop being finite. Called on every rank.

    Args:
        compute: forward and backward of `batch`; the engine's gradients must not be used afterwards.

    Returns:
        A JSON-serialisable dictionary with
        `step`, `epoch` and `sentences` (ids in the corpus) of the global batch;
        `ranks`: for each rank its losses, the first module with finite inputs and an output that is not finite, and the
        norm of the rank's own gradient for each parameter;
        `weights`: for each parameter its group (`decayed` or `kept`) and its norm.
        Norms that are not finite are the strings "nan" and "inf".
    """
    gradients: dict[str, float] = {}
    with _first_bad_output(model) as first, _gradient_norms(model, gradients):
        output = compute()
    own = {
        "rank": rank(),
        "loss": _number(output.loss),
        **{term.name: _number(output.statistics[term.name]) for term in TERMS if term.name in output.statistics},
        "first_module": first[0] if first else None,
        "gradient_norms": {name: _number(norm) for name, norm in gradients.items()},
    }
    return {
        "step": batch.step + 1,
        "epoch": batch.epoch,
        "sentences": batches.sentence_ids(batch.step).tolist(),
        "ranks": gather_objects(own),
        "weights": _weight_norms(model),
    }


def describe(found: dict[str, Any]) -> str:
    """Summarise `diagnose` in one clause: first step, ranks, first module, and parameters with such gradients."""
    parameters = _bad_parameters(found)
    ranks = [one for one in found["ranks"] if _bad(one["loss"]) or one["first_module"]]
    if not ranks and not parameters:
        return (
            f"Step {found['step']} was not finite during training but is finite when recomputed; suspect hardware or a "
            "nondeterministic operation"
        )
    parts = [f"Loss or gradient is not finite from step {found['step']} on"]
    if ranks:
        parts.append("on rank " + ", ".join(str(one["rank"]) for one in ranks))
    if modules := sorted({one["first_module"] for one in ranks if one["first_module"]}):
        parts.append("first in the output of " + ", ".join(modules))
    if parameters:
        more = f" and {len(parameters) - 3} more" if len(parameters) > 3 else ""
        parts.append(f"in the gradients of {', '.join(parameters[:3])}{more}")
    return ", ".join(parts)


def write_dump(run: Path, found: dict[str, Any], prefix: str = "") -> Path:
    """Write a diagnosis to the run folder, as `nonfinite/step-00000012.json`."""
    file = run / run_files.NONFINITE / f"{prefix}step-{found['step']:08d}.json"
    file.parent.mkdir(exist_ok=True)
    write_durably(to_json(found, indent=1), file)
    return file


def _bad_parameters(found: dict[str, Any]) -> list[str]:
    """Parameters whose gradient was not finite on some rank; if there is none, parameters that are not finite."""
    groups = found["weights"]
    gradients = {name for one in found["ranks"] for name, norm in one["gradient_norms"].items() if _bad(norm)}
    names = gradients or {name for name, weight in groups.items() if _bad(weight["norm"])}
    return sorted(f"{name} ({groups[name]['group']})" for name in names)


def _bad(number: Any) -> bool:
    return isinstance(number, str)


def _number(value: Tensor | float) -> float | str:
    value = float(value.detach() if isinstance(value, Tensor) else value)
    return value if math.isfinite(value) else "nan" if math.isnan(value) else "inf"


def _finite(values: Any) -> bool:
    if isinstance(values, Tensor):
        return not values.is_floating_point() or bool(torch.isfinite(values).all())
    if isinstance(values, dict):
        return all(map(_finite, values.values()))
    return all(map(_finite, values)) if isinstance(values, tuple | list) else True


@contextmanager
def _first_bad_output(model: nn.Module) -> Iterator[list[str]]:
    """Inside, record the first module with finite inputs and an output that is not finite (the innermost one)."""
    found: list[str] = []

    def hook(name: str) -> Callable[..., None]:
        def look(module: nn.Module, arguments: Any, keywords: Any, output: Any) -> None:
            if not found and _finite(arguments) and _finite(keywords) and not _finite(output):
                found.append(name)

        return look

    handles = [
        module.register_forward_hook(hook(name), with_kwargs=True) for name, module in model.named_modules() if name
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _gradient_norms(model: nn.Module, norms: dict[str, float]) -> Iterator[None]:
    """Inside, add to `norms` the norm of each trained parameter's gradient on this rank, before it is reduced."""

    def hook(name: str) -> Callable[[Tensor], None]:
        def note(gradient: Tensor) -> None:
            norms[name] = math.hypot(norms.get(name, 0.0), float(torch.linalg.vector_norm(gradient.float())))

        return note

    handles = [
        parameter.register_hook(hook(name))
        for group in trained_groups(model)
        for name, parameter in group.parameters.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _weight_norms(model: nn.Module) -> dict[str, dict[str, Any]]:
    norms = {}
    for group in trained_groups(model):
        for name, parameter in group.parameters.items():
            with deepspeed.zero.GatheredParameters([parameter]):
                norm = torch.linalg.vector_norm(parameter.detach().float())
            norms[name] = {"group": group.label, "norm": _number(norm)}
    return norms
