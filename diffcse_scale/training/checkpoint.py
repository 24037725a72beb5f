"""Checkpoints that are whole or absent.

Every rank writes its shards into `checkpoints/step-00000100.partial/`; when all are done the folder is renamed and
only then may be resumed from. Random state is not in it: it is derived from seed, step and rank (`randomness.py`),
and so is the order of sentences. The frozen generator is not in it either, nor are the frozen weights under adapters.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
from pathlib import Path
from typing import Any

from diffcse_scale.distributed import barrier, broadcast_object, is_main, world_size
from diffcse_scale.errors import InputError
from diffcse_scale.training.resharding import load_resharded

log = logging.getLogger(__name__)

PARTIAL = ".partial"
STATE = "training_state.json"


def checkpoint_steps(folder: Path) -> list[int]:
    """Steps of the whole checkpoints in `folder`, oldest first."""
    if not folder.is_dir():
        return []
    found = (re.fullmatch(r"step-(\d+)", entry.name) for entry in folder.iterdir())
    return sorted(int(match[1]) for match in found if match and (folder / match[0] / STATE).is_file())


def save_checkpoint(engine: Any, folder: Path, step: int, state: dict[str, Any], keep: int) -> None:
    """Write the checkpoint of `step`, then delete all but the newest `keep`. Called on every rank.

    Args:
        state: JSON-serialisable state of the loop.
    """
    tag = f"step-{step:08d}"
    partial, whole = folder / (tag + PARTIAL), folder / tag
    if is_main():
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(partial, ignore_errors=True)
    barrier()
    engine.save_checkpoint(
        str(folder), tag=partial.name, save_latest=False, exclude_frozen_parameters=_has_frozen(engine)
    )
    barrier()
    if is_main():
        written = {**state, "step": step, **_shape(engine)}
        (partial / STATE).write_text(json.dumps(written, indent=1), encoding="utf-8")
        shutil.rmtree(whole, ignore_errors=True)
        partial.rename(whole)
        for old in checkpoint_steps(folder)[:-keep]:
            shutil.rmtree(folder / f"step-{old:08d}")
    barrier()


def load_checkpoint(engine: Any, folder: Path) -> dict[str, Any] | None:
    """Load the newest whole checkpoint into the engine; returns the state it was saved with, None if there is none.

    A run of the same world size and ZeRO configuration gets its own shards back from DeepSpeed, bit for bit; any other
    reads its parts from the shards of all (`resharding`).

    Raises:
        InputError: it cannot be loaded.
    """
    steps = broadcast_object(checkpoint_steps(folder))
    if is_main():
        for entry in folder.glob(f"*{PARTIAL}"):
            log.warning("Checkpoint %s is half-written and not used.", entry.name)
    if not steps:
        return None
    tag = f"step-{steps[-1]:08d}"
    state: dict[str, Any] = json.loads((folder / tag / STATE).read_text(encoding="utf-8"))
    if any(state.get(key) != value for key, value in _shape(engine).items()):
        load_resharded(engine, folder / tag, state["zero_stage"], state["world_size"])
        return state
    path, _ = engine.load_checkpoint(str(folder), tag=tag, load_module_strict=not _has_frozen(engine))
    if path is None:
        raise InputError(f"Checkpoint {folder / tag} could not be loaded; delete it to resume from the one before.")
    return state


def _shape(engine: Any) -> dict[str, Any]:
    """What the layout of an engine's shards follows from."""
    return {
        "world_size": world_size(),
        "zero_stage": engine.zero_optimization_stage(),
        "zero_optimization": engine.config.get("zero_optimization", {}),
    }


def _has_frozen(engine: Any) -> bool:
    return any(not parameter.requires_grad for parameter in engine.module.parameters())
