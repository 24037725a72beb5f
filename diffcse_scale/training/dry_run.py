"""`--dry-run`: do everything that a run does before its first step, show what that step would be, and stop."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import torch
import yaml
from transformers import PreTrainedTokenizerBase

from diffcse_scale.distributed import broadcast_object, is_main, world_size
from diffcse_scale.engine.launch import device
from diffcse_scale.foundation.errors import InputError
from diffcse_scale.foundation.launched import SET_TOGETHER
from diffcse_scale.foundation.strict_json import to_json
from diffcse_scale.recipe import Recipe
from diffcse_scale.text.corpus import FIRST

if TYPE_CHECKING:
    from diffcse_scale.training.trainer import Trainer


def dry_run(trainer: Trainer, deepspeed_config: dict[str, Any]) -> None:
    """Show edited rows of the first batch, and the memory of a step. Called on every rank.

    Args:
        deepspeed_config: as given, before it was completed.

    Raises:
        InputError: `diffcse-scale plan` failed.
    """
    chunks, edited = trainer.training_step.edits_of(trainer.batches.batch(0))
    if is_main():
        if edited is not None:
            print("\nRows of the first batch as the discriminator sees them, original>replacement:")
            tokenizer, mask = trainer.batches.tokenizers.discriminator, chunks[0].original_mask.bool()
            for row in range(min(FIRST, len(mask))):
                real = mask[row, 0]
                original, replaced = (ids[row, 0][real].tolist() for ids in (chunks[0].original_ids, edited[0]))
                shown = edited_row(original, replaced, tokenizer)
                print(textwrap.fill(shown, 80, initial_indent="  ", subsequent_indent="    "))
        print("\nMemory that a step needs, from `diffcse-scale plan`:", flush=True)
    if broadcast_object(_plan(trainer.recipe, deepspeed_config) if is_main() else None):
        raise InputError("`diffcse-scale plan` cannot plan this run, for the reason above; fix that first.")
    if is_main():
        print("\nEverything was checked, and no run was started. To start it, leave out --dry-run.")


def edited_row(original: Sequence[int], edited: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> str:
    """The tokens of a row; a replaced token is written as `original>replacement`."""
    before, after = tokenizer.convert_ids_to_tokens(original), tokenizer.convert_ids_to_tokens(edited)
    return " ".join(old if old == new else f"{old}>{new}" for old, new in zip(before, after, strict=True))


def _plan(recipe: Recipe, deepspeed_config: dict[str, Any]) -> int:
    """Run `diffcse-scale plan` and return its exit code.

    It needs its own process, because a plan simulates ranks that are real in this one.
    """
    on_cpu = device().type == "cpu"
    if on_cpu:
        memory = psutil.virtual_memory().total / int(os.environ.get("LOCAL_WORLD_SIZE", world_size()))
    else:
        memory = torch.get_device_module(device()).get_device_properties(device()).total_memory
    with tempfile.TemporaryDirectory() as folder:
        what, how = Path(folder) / "recipe.yaml", Path(folder) / "deepspeed.json"
        what.write_text(yaml.safe_dump(recipe.model_dump(mode="json")), encoding="utf-8")
        how.write_text(to_json(deepspeed_config), encoding="utf-8")
        command = [sys.executable, "-m", "diffcse_scale", "plan", "--recipe", str(what), "--deepspeed_config", str(how)]
        command += ["--gpus-per-node", str(world_size()), "--gpu-memory", f"{memory / 2**30:.2f}"]
        alone = {name: value for name, value in os.environ.items() if name not in SET_TOGETHER}
        return subprocess.run([*command, *(["--cpu"] if on_cpu else [])], env=alone, check=False).returncode
