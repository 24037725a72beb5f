"""How much training time do checkpoints cost: written in the background, written at once, or none?

    python -m studies.checkpointing                # 66M trained parameters, 1 GB a checkpoint; some minutes
    python -m studies.checkpointing --layers 1     # a smaller one
    python -m studies.checkpointing --table        # from the existing rows

A random BERT is trained as in train.py, with InfoNCE alone, on two CPU ranks under the `deepspeed` launcher at ZeRO-2.
All three ways are measured in the same processes, in blocks of steps in changing order. A block has one checkpoint,
after its second step. Rows go to docs/results/checkpointing.jsonl, a table to the screen.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from transformers import BertConfig, BertModel

from diffcse_scale.checkpoints.checkpoint import Checkpoints
from diffcse_scale.checkpoints.manifest import checkpoint_name, read_manifest
from diffcse_scale.distributed import agree, barrier, is_main, rank, world_size
from diffcse_scale.engine.config_file import load_deepspeed_config
from diffcse_scale.engine.configuration import complete_config
from diffcse_scale.engine.engine import initialize, optimizer_step
from diffcse_scale.engine.launch import start_process_group
from diffcse_scale.foundation.environment import environment
from diffcse_scale.model.backbone import load_tokenizers
from diffcse_scale.model.build import build_model
from diffcse_scale.recipe import Recipe
from diffcse_scale.recipe_file import load_recipe
from diffcse_scale.rendezvous import free_port
from diffcse_scale.text.batches import Batches
from diffcse_scale.text.tokens import tokenize
from tests.support.tiny_models import tiny_tokenizer

ROOT = Path(__file__).parents[1]
ROWS = ROOT / "docs" / "results" / "checkpointing.jsonl"
# name: whether the checkpoint is written in the background; None means no checkpoint
WAYS = {"no checkpoint": None, "in the background": True, "at once": False}
STEPS = 10  # in a block
CHECKPOINT_AFTER = 2  # steps, in each block
REPEATS = 6  # the first is a warm-up and does not count


def save_model(folder: Path, layers: int) -> None:
    """A random BERT of width 768 with BERT's vocabulary, and a tokenizer that fits it."""
    torch.manual_seed(0)
    BertModel(BertConfig(num_hidden_layers=layers), add_pooling_layer=False).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)


class Training:
    """The training of train.py without everything around it."""

    def __init__(self, recipe: Recipe) -> None:
        config = load_deepspeed_config(ROOT / "ds_configs" / "zero2.json")
        config = complete_config(config, recipe, world_size())
        tokenizers = load_tokenizers(recipe.model)
        self.engine = initialize(build_model(recipe, tokenizers), recipe, config)
        tokens = tokenize(recipe.data, tokenizers.streams, seed=recipe.seed, main=is_main())
        self.batches = Batches(tokens, tokenizers, recipe, rank(), world_size())
        for group in self.engine.optimizer.param_groups:
            group["lr"] = recipe.optimizer.learning_rate
        self.step = 0

    def train_step(self) -> None:
        """Forward, backward and step."""
        output = self.engine(self.batches.batch(self.step).chunks, None)
        self.engine.backward(output.loss)
        optimizer_step(self.engine)
        self.step += 1

    def parameters(self) -> int:
        """Number of trained parameters."""
        return sum(parameter.numel() for parameter in self.engine.module.parameters())


def block(training: Training, folder: Path, background: bool | None) -> dict[str, Any]:
    """Run a block of steps as the trainer's loop does; returns the seconds of each part on this rank."""
    checkpoints = Checkpoints(training.engine, folder, background=bool(background))
    parts: dict[str, list[float]] = {"step": [], "save": [], "tick": []}
    writing = []  # for each step, whether this rank was writing
    barrier()
    began = time.perf_counter()
    for number in range(1, STEPS + 1):
        writing.append(checkpoints.writing())
        clock = _Clock()
        training.train_step()
        parts["step"].append(clock.lap())
        if background is not None and number == CHECKPOINT_AFTER:
            checkpoints.save(training.step, {})
        parts["save"].append(clock.lap())
        (writing_somewhere,) = agree(checkpoints.writing())
        checkpoints.commit_if_written(bool(writing_somewhere))
        parts["tick"].append(clock.lap())
    clock = _Clock()
    checkpoints.finish()
    waited = clock.lap()
    barrier()
    row = {"seconds": time.perf_counter() - began, "waited_at_the_end": waited, "writing": writing, **parts}
    if checkpoints.step is not None:
        files = read_manifest(folder / checkpoint_name(checkpoints.step)) or {}
        row["bytes"] = sum(file["bytes"] for file in files.values())
    return row


class _Clock:
    def __init__(self) -> None:
        self._since = time.perf_counter()

    def lap(self) -> float:
        """Seconds since the last lap."""
        now = time.perf_counter()
        lap, self._since = now - self._since, now
        return lap


def work(folder: Path) -> None:
    """The work of one launched rank; the main rank writes its rows to `folder`."""
    start_process_group()
    changes = [f"model.encoder={folder / 'model'}", "model.pooling=cls", "objective.rtd_weight=0", "data.limit=2000"]
    changes += [f"data.cache_dir={folder / 'cache'}", "batch.sentences=8", "data.workers=1", "data.max_length=32"]
    training = Training(load_recipe("quickstart", changes))
    rows, ways = [], list(WAYS)
    for repeat in range(REPEATS):
        for way in ways[repeat % len(ways) :] + ways[: repeat % len(ways)]:
            row = block(training, folder / "checkpoints", WAYS[way])
            rows.append({"way": way, "repeat": repeat, "load_average": round(os.getloadavg()[0], 2), **row})
            if is_main():
                print(f"{way}: {row['seconds']:.1f} s for {STEPS} steps", file=sys.stderr, flush=True)
    about = {"parameters": training.parameters(), "ranks": world_size(), "environment": environment()}
    if is_main():
        (folder / "rows.json").write_text(json.dumps([about, *rows]))


def measure(layers: int) -> list[dict[str, Any]]:
    """Facts about the measurement first, then one row per block."""
    launcher = [str(Path(sys.executable).parent / "deepspeed"), "--num_gpus", "2", "--master_port", str(free_port())]
    path = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")])}
    defaults = {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_model(folder / "model", layers)
        command = [*launcher, __file__, "--work", str(folder)]
        subprocess.run(command, check=True, env={**defaults, **os.environ, **path}, stdout=subprocess.DEVNULL)
        about, *rows = json.loads((folder / "rows.json").read_text())
    return [about, *rows]


def table(rows: list[dict[str, Any]]) -> str:
    """One line per way, with medians (smallest to largest); "while writing": this rank wrote a file in that step."""
    columns = "save, s | plain step, s | step while writing, s | such steps | lost to a checkpoint, s | block, s"
    lines = [f"| checkpoint | {columns} |", "|---" * 7 + "|"]
    for way in WAYS:
        blocks = [row for row in rows if row["way"] == way and row["repeat"] > 0]
        steps = [step for row in blocks for step in zip(row["step"], row["writing"], strict=True)]
        plain, writing = ([seconds for seconds, during in steps if during == which] for which in (False, True))
        taken = [row for row in blocks if "bytes" in row]
        cells = [_median([row["save"][CHECKPOINT_AFTER - 1] for row in taken]), _median(plain), _median(writing)]
        cells += [f"{median(sum(row['writing']) for row in blocks):g}", _median([lost(row) for row in taken])]
        lines.append(f"| {way} | {' | '.join(cells)} | {_median([row['seconds'] for row in blocks])} |")
    return "\n".join(lines)


def lost(row: dict[str, Any]) -> float:
    """Seconds that a block's checkpoint cost: the time to save it, and the slowdown of steps while it was written."""
    steps = list(zip(row["step"], row["writing"], strict=True))
    plain = median(seconds for seconds, during in steps if not during)
    return sum(row["save"]) + sum(seconds - plain for seconds, during in steps if during) + row["waited_at_the_end"]


def _median(values: list[float]) -> str:
    return f"{median(values):.2f} ({min(values):.2f} to {max(values):.2f})" if values else "-"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--rows", type=Path, default=ROWS)
    parser.add_argument(
        "--table", action="store_true", help="Print the table of the existing rows and measure nothing."
    )
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--local_rank", type=int, default=0, help=argparse.SUPPRESS)  # the launcher passes it
    arguments = parser.parse_args()
    if arguments.work is not None:
        work(arguments.work)
        return
    if not arguments.table:
        rows = measure(arguments.layers)
        arguments.rows.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    about, *rows = [json.loads(line) for line in arguments.rows.read_text(encoding="utf-8").splitlines()]
    print(f"{about['parameters']:,} parameters, {max(row.get('bytes', 0) for row in rows) / 1e9:.2f} GB a checkpoint")
    print(table(rows))


if __name__ == "__main__":
    main()
