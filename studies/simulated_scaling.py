"""How would steps of five models scale to thousands of devices? The simulation of `diffcse-scale plan --scaling`.

    python -m studies.simulated_scaling                 # simulates, writes the rows, prints the tables
    python -m studies.simulated_scaling --table         # the tables, from the existing rows

The models have their published shapes, but no weights. "Before" is this trainer before it was optimized for a thousand
devices. "After" is the present trainer with the settings that docs/scaling.md recommends.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml
from transformers import BertConfig, DistilBertConfig, LlamaConfig, PretrainedConfig, Qwen3Config

from diffcse_scale.engine.config_file import load_deepspeed_config
from diffcse_scale.foundation.environment import environment
from diffcse_scale.planning.scaling import Assumptions, Point, Scaling
from diffcse_scale.planning.shape_networks import load_networks
from diffcse_scale.planning.sharding import read_sharding
from diffcse_scale.planning.step_model import Ways
from diffcse_scale.recipe_file import load_recipe
from tests.support.toy_world import toy_tokenizer

ROWS = Path(__file__).parents[1] / "docs" / "results" / "scaling.jsonl"
PER_NODE = 8
# the published config.json of each model; the tokenizer does not affect the simulation
SHAPES: dict[str, PretrainedConfig] = {
    "bert-base": BertConfig(),
    "bert-large": BertConfig(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096),
    "qwen3-8b": Qwen3Config(
        vocab_size=151_936,
        hidden_size=4096,
        intermediate_size=12_288,
        num_hidden_layers=36,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
    ),
    "llama3-70b": LlamaConfig(
        vocab_size=128_256,
        hidden_size=8192,
        intermediate_size=28_672,
        num_hidden_layers=80,
        num_attention_heads=64,
        num_key_value_heads=8,
    ),
    "distilbert": DistilBertConfig(),
}
LORA = {"rank": 16, "alpha": 32, "dropout": 0.05, "base": "bfloat16"}


@dataclass(frozen=True)
class Case:
    """A model and the settings of its training."""

    name: str
    settings: str
    encoder: str
    stage: str
    share: int  # sentences per device, for weak scaling
    sentences: int | None  # in the global batch, for strong scaling
    chunk: int | None = None
    ways: Ways = field(default_factory=Ways)

    @property
    def is_large(self) -> bool:
        """Whether activations are recomputed."""
        return not self.encoder.startswith("bert")

    @property
    def has_adapters(self) -> bool:
        """Whether only adapters are trained and the encoder is frozen."""
        return "LoRA" in self.name


SLOW_FLAGS = 25e-6  # seconds per hop of gloo's ring, in every step
BEFORE_1 = Ways(flag_hop=SLOW_FLAGS, key_bytes=4.0, scatters=False)
BEFORE_3 = replace(BEFORE_1, overlap=True)
NOW = Ways(overlap=True, key_bytes=2.0)
LAYERS = replace(NOW, bucket=2e8, group=PER_NODE)
LARGE_LAYERS = replace(LAYERS, bucket=8.6e8, ahead=2e9)
QUANTIZED, LARGE_QUANTIZED = replace(LAYERS, quantized=True), replace(LARGE_LAYERS, quantized=True)
ASSUMPTIONS = {"before": Assumptions(batch_us=0.2), "after": Assumptions()}
CASES = {
    "before": (
        Case("bert-base", "ZeRO-1", "bert-base", "zero1", 64, 65_536, ways=BEFORE_1),
        Case("bert-large", "ZeRO-1, chunks of 32", "bert-large", "zero1", 64, 65_536, chunk=32, ways=BEFORE_1),
        Case("8B with LoRA", "ZeRO-2", "qwen3-8b", "zero2", 64, 16_384, chunk=64, ways=BEFORE_1),
        Case("8B", "ZeRO-3", "qwen3-8b", "zero3", 64, 16_384, chunk=64, ways=BEFORE_3),
        Case("8B, 512 a device", "ZeRO-3, chunks of 64", "qwen3-8b", "zero3", 512, None, chunk=64, ways=BEFORE_3),
        Case("70B", "ZeRO-3", "llama3-70b", "zero3", 64, 16_384, chunk=64, ways=BEFORE_3),
    ),
    "after": (
        Case("bert-base", "ZeRO-1, overlap_comm", "bert-base", "zero1", 64, 65_536, ways=NOW),
        Case("bert-base, 256 a device", "ZeRO-1, overlap_comm", "bert-base", "zero1", 256, None, ways=NOW),
        Case("bert-large", "ZeRO-1, overlap_comm", "bert-large", "zero1", 64, 65_536, chunk=64, ways=NOW),
        Case("bert-large, 256 a device", "ZeRO-1, overlap_comm", "bert-large", "zero1", 256, None, ways=NOW),
        Case("8B with LoRA", "ZeRO-2, overlap_comm", "qwen3-8b", "zero2", 64, 16_384, chunk=64, ways=NOW),
        Case("8B", "ZeRO-3, hpZ", "qwen3-8b", "zero3", 64, None, ways=replace(NOW, group=PER_NODE)),
        Case("8B", "ZeRO-3, whole layers", "qwen3-8b", "zero3", 64, None, ways=replace(LAYERS, group=1)),
        Case("8B", "ZeRO-3, whole layers, hpZ", "qwen3-8b", "zero3", 64, 16_384, chunk=64, ways=LAYERS),
        Case("8B", "the same, quantized", "qwen3-8b", "zero3", 64, 16_384, chunk=64, ways=QUANTIZED),
        Case("8B, 512 a device", "ZeRO-3, whole layers, hpZ", "qwen3-8b", "zero3", 512, None, ways=LAYERS),
        Case("70B", "ZeRO-3, whole layers, hpZ", "llama3-70b", "zero3", 64, None, ways=LARGE_LAYERS),
        Case("70B", "the same, quantized", "llama3-70b", "zero3", 64, 16_384, chunk=64, ways=LARGE_QUANTIZED),
    ),
}


def simulated(case: Case, assumptions: Assumptions, folder: Path) -> dict[str, list[Point]]:
    """Weak and strong scaling of a case."""
    recipe = load_recipe(str(_recipe(case, folder)))
    sharding = read_sharding(load_deepspeed_config(case.stage), recipe, PER_NODE, on_cpu=False)
    scaling = Scaling(recipe, sharding, load_networks(recipe), PER_NODE, assumptions, case.ways)
    found = {"weak": scaling.weak(case.share)}
    return found if case.sentences is None else {**found, "strong": scaling.strong(case.sentences)}


def _recipe(case: Case, folder: Path) -> Path:
    """Write a recipe with models that have only shapes."""
    tokenizer = toy_tokenizer(["a b"])
    for name, shape in SHAPES.items():
        shape.pad_token_id = tokenizer.pad_token_id
        shape.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    model: dict[str, Any] = {"encoder": str(folder / case.encoder), "generator": str(folder / "distilbert")}
    if case.is_large:
        model |= {"discriminator": str(folder / "bert-base"), "gradient_checkpointing": True, "dropout": 0.1}
        model |= {"pooling": "mean"} | ({"lora": LORA} if case.has_adapters else {})
    recipe = {
        "name": "simulated",
        "model": model,
        "data": {"files": "nowhere.txt", "max_length": 32},
        "batch": {"sentences": case.share * PER_NODE, "chunk": case.chunk},
        "evaluation": {"max_length": 32},
        "optimizer": {"learning_rate": 1e-5},
    }
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe))
    return file


def all_rows() -> Iterator[dict[str, Any]]:
    """One row for each case, scaling and number of devices."""
    for when, cases in CASES.items():
        for case in cases:
            with tempfile.TemporaryDirectory() as folder:
                found = simulated(case, ASSUMPTIONS[when], Path(folder))
            about = {"when": when, "model": case.name, "settings": case.settings, "ways": asdict(case.ways)}
            for scaling, points in found.items():
                yield from ({**about, "scaling": scaling, **point.as_json()} for point in points)


def table(rows: list[dict[str, Any]], when: str, scaling: str) -> str:
    """The share of a step for which devices are busy, and what they wait for at 1,024 devices."""
    devices = sorted({row["devices"] for row in rows})
    lines = [f"| model | settings | {' | '.join(f'{number:,}' for number in devices)} | 1,024 wait for |"]
    lines.append("|---" * (3 + len(devices)) + "|")
    for name, settings in dict.fromkeys((row["model"], row["settings"]) for row in rows if row["when"] == when):
        found = {
            row["devices"]: row
            for row in rows
            if (row["when"], row["scaling"], row["model"], row["settings"]) == (when, scaling, name, settings)
        }
        if found:
            cells = [f"{found[number]['efficiency']:.0%}" if number in found else "" for number in devices]
            limit = found[1024]["limit"] or "nothing"
            cells.append(f"{limit}, {found[1024]['waits'].get(limit, 0.0) * 1e3:,.0f} ms")
            lines.append(f"| {name} | {settings} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, default=ROWS)
    parser.add_argument("--table", action="store_true", help="Print the table of the existing rows only.")
    arguments = parser.parse_args()
    if not arguments.table:
        first = {
            "environment": environment(),
            "assumptions": {when: one.model_dump() for when, one in ASSUMPTIONS.items()},
        }
        rows = [first, *all_rows()]
        arguments.rows.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    _, *rows = [json.loads(line) for line in arguments.rows.read_text(encoding="utf-8").splitlines()]
    for scaling in ("weak", "strong"):
        for when in CASES:
            print(f"{scaling}, {when}\n\n{table(rows, when, scaling)}\n")


if __name__ == "__main__":
    main()
