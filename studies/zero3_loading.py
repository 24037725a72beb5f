"""How much memory does a rank need to load a large backbone, with and without partitioning during the load?

    python -m studies.zero3_loading                  # 183M parameters, twice; needs 12 GB and a few minutes
    python -m studies.zero3_loading --layers 4       # a smaller one

Writes a random BERT to disk, then loads it as train.py does, as encoder and as discriminator, on two ranks under the
`deepspeed` launcher. Rows go to docs/results/zero3_loading.jsonl, a table to the screen.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from transformers import BertConfig, BertModel

from diffcse_scale.distributed import rank, world_size
from diffcse_scale.engine.config_file import load_deepspeed_config
from diffcse_scale.engine.configuration import complete_config
from diffcse_scale.engine.engine import initialize, partitioned_loading, whole_state
from diffcse_scale.engine.launch import start_process_group
from diffcse_scale.foundation.environment import environment
from diffcse_scale.model import build
from diffcse_scale.model.backbone import load_tokenizers
from diffcse_scale.recipe_file import load_recipe
from diffcse_scale.rendezvous import free_port
from tests.support.memory import PeakMemory
from tests.support.tiny_models import tiny_tokenizer

ROOT = Path(__file__).parents[1]
# name: (configuration, whether loading is partitioned)
CASES = {"ZeRO-2": ("zero2", True), "ZeRO-3, loaded whole": ("zero3", False), "ZeRO-3": ("zero3", True)}
FILES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
PHASES = ("discriminator loaded", "encoder loaded", "engine initialised", "encoder gathered for export")


def save_model(folder: Path, dtype: torch.dtype, layers: int, width: int = 1024) -> None:
    """A random BERT with the vocabulary of bert-large-uncased and a tokenizer that fits it."""
    torch.manual_seed(0)
    sizes = {"hidden_size": width, "intermediate_size": 4 * width, "num_attention_heads": width // 64}
    model = BertModel(BertConfig(num_hidden_layers=layers, **sizes), add_pooling_layer=False)
    model.to(dtype).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)


def work(folder: Path, file: str, case: str) -> None:
    """The work of one launched rank; writes its rows to `folder`."""
    start_process_group()
    # the small model first, so that the imports of a first load do not count as the large model's memory
    for model in ("small", file):
        parameters, phases = load_and_observe(folder / model, *CASES[case])
    about = {"case": case, "file": file, "rank": rank(), "backbone_parameters": parameters}
    rows = [{**about, "phase": phase, "peak": peak, "after": after} for phase, (peak, after) in phases.items()]
    (folder / f"rank{rank()}.json").write_text(json.dumps(rows))


def load_and_observe(model: Path, name: str, partitioned: bool) -> tuple[int, dict[str, tuple[int, int]]]:
    """Number of parameters of the backbone; for each phase, peak memory and memory after it, in bytes."""
    recipe = load_recipe("quickstart", [f"model.encoder={model}", f"model.generator={model}"])
    config = load_deepspeed_config(ROOT / "ds_configs" / f"{name}.json")
    config = complete_config(config, recipe, world_size())
    memory, phases, load = PeakMemory(), {}, build.load_backbone

    def observed(*arguments: Any, **options: Any) -> Any:
        backbone = load(*arguments, **options)
        phases[PHASES[len(phases)]] = memory.read()
        return backbone

    with (
        patch.object(build, "load_backbone", observed),
        partitioned_loading(config, recipe) if partitioned else nullcontext(),
    ):
        network = build.build_model(recipe, load_tokenizers(recipe.model))
    backbone = network.encoder.backbone
    parameters = sum(getattr(p, "ds_numel", p.numel()) for p in backbone.parameters())
    engine = initialize(network, recipe, config)
    phases[PHASES[2]] = memory.read()
    state = whole_state(backbone)
    phases[PHASES[3]] = memory.read()
    memory.close()
    del engine, state  # until here their memory counts
    return parameters, phases


def measure(folder: Path, file: str, case: str) -> list[dict[str, Any]]:
    """Rows of one case, from two ranks in a separate launch."""
    launcher = [str(Path(sys.executable).parent / "deepspeed"), "--num_gpus", "2", "--master_port", str(free_port())]
    path = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")])}
    defaults = {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [*launcher, __file__, "--work", str(folder), "--file", file, "--case", case]
    subprocess.run(command, check=True, env={**defaults, **os.environ, **path}, stdout=subprocess.DEVNULL)
    return [row for each in (0, 1) for row in json.loads((folder / f"rank{each}.json").read_text())]


def table(rows: list[dict[str, Any]]) -> str:
    """One line per file, case and rank; one column per phase: peak / memory after it, in GB."""
    lines = ["| file | | rank | " + " | ".join(PHASES) + " |", "|---" * (3 + len(PHASES)) + "|"]
    for start in range(0, len(rows), len(PHASES)):
        one = rows[start : start + len(PHASES)]
        cells = [f"{row['peak'] / 1e9:.2f} / {row['after'] / 1e9:.2f}" for row in one]
        lines.append(f"| {one[0]['file']} | {one[0]['case']} | {one[0]['rank']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--layers", type=int, default=12, help="Layers of width 1024, 12.6M parameters each (default: 12)."
    )
    parser.add_argument("--rows", type=Path, default=ROOT / "docs" / "results" / "zero3_loading.jsonl")
    parser.add_argument("--work", type=Path, default=None, help=argparse.SUPPRESS)
    parser.add_argument("--file", default=None, help=argparse.SUPPRESS)
    parser.add_argument("--case", default=None, help=argparse.SUPPRESS)
    parser.add_argument("--local_rank", default=None, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work is not None:
        return work(arguments.work, arguments.file, arguments.case)
    with tempfile.TemporaryDirectory() as temporary:
        save_model(Path(temporary, "small"), torch.float32, layers=1, width=128)
        for file, dtype in FILES.items():
            save_model(Path(temporary, file), dtype, arguments.layers)
        rows = [row for file in FILES for case in CASES for row in measure(Path(temporary), file, case)]
    about = environment()
    arguments.rows.write_text("".join(json.dumps({**row, "environment": about}) + "\n" for row in rows))
    copy = 4 * rows[0]["backbone_parameters"] / 1e9
    print(f"{copy / 4:.3f}e9 parameters in each of encoder and discriminator: {copy:.2f} GB of float32 weights each")
    print(table(rows))


if __name__ == "__main__":
    main()
