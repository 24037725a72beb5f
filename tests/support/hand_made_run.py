"""A run folder made by hand around a tiny random model: every file that an export reads, in a moment."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save_file
from torch import nn

from diffcse_scale.export import export_sentence_transformer
from diffcse_scale.model.projection import make_projection
from diffcse_scale.recipe_file import load_recipe
from tests.support.tiny_models import tiny_bert, tiny_tokenizer

SENTENCES = ["a dog runs", "the cat", "a dog runs fast over green grass and barks at the cat", "grass"]
MAX_LENGTH = 8
SECRETS = ("alice", "/home", "secret-host", "/scratch")
RECORD = {
    "command": "train.py --output /home/alice/runs/mine",
    "plan": {"global_batch": 64, "world_size": 2, "steps": 100, "steps_per_epoch": 312},
    "precision": "float32",
    "data_fingerprint": "859a4a3463e44a77",
    "deepspeed_config": {"zero_optimization": {"stage": 2}, "tensorboard": {"output_path": "/home/alice/tb"}},
    "environment": {
        "python": "3.11.7",
        "platform": "Linux-6.1-secret-host",
        "processor": "AMD EPYC",
        "cores": 16,
        "torch_threads": 8,
        "devices": ["NVIDIA A100-SXM4-80GB", "NVIDIA A100-SXM4-80GB"],
        "packages": {"diffcse-scale": "0.1.0", "torch": "2.13.0", "peft": None},
    },
}
METRICS: list[dict[str, Any]] = [
    {"step": 0, "dev_spearman": 40.0, "evaluation_seconds": 90.0},
    {"step": 50, "loss": 1.0, "training_seconds": 1000.0, "checkpoint_seconds": 10.0},
    {"step": 100, "loss": 0.5, "training_seconds": 700.0},
]
RESULT = {
    "steps": 100,
    "before": {"dev_spearman": 40.0, "dev_spearman_mean": 44.25},
    "best": {"step": 100, "dev_spearman": 61.5},
}
STS = {
    "suite": "sts",
    "model": "/home/alice/runs/mine",
    "data": "/scratch/sts",
    "pooling": "its own pooling",
    "max_length": 8,
    "date": "2026-01-02",
    "tasks": [
        {"name": "STS-B test", "group": "test", "measure": "Spearman x 100", "value": 57.125, "interval": [55.0, 59.5],
         "count": 1379, "remark": ""},
        {"name": "STS13", "group": "test", "measure": "Spearman x 100", "value": None, "interval": None, "count": 1500,
         "remark": "constant"},
    ],
    "means": [{"name": "mean of the seven test sets", "measure": "Spearman x 100", "value": 56.5, "interval": None}],
    "details": {},
    "environment": {},
}  # fmt: skip
TRANSFER = {
    **STS,
    "suite": "transfer",
    "tasks": [{**STS["tasks"][0], "name": "MR", "measure": "accuracy", "count": 10662}],
    "means": [],
}


def trained_projection(kind: str = "batchnorm", width: int = 24) -> nn.Module:
    """A projection in eval mode none of whose numbers is what it starts from."""
    torch.manual_seed(3)
    projection = make_projection(kind, width, initializer_range=0.3)
    for name, tensor in projection.state_dict().items():
        if "running_var" in name:
            tensor.uniform_(0.5, 2.0)
        elif "tracked" not in name and "weight" not in name:
            tensor.normal_()
        elif name == "net.1.weight":
            tensor.uniform_(-2.0, 2.0)
    return projection.eval()


def write_run(folder: Path, pooling: str = "mean", **model: str) -> Path:
    """A finished run, whose text, generator and evaluation lay in places that are nobody's business."""
    overrides = [f"model.{name}={value}" for name, value in model.items()]
    recipe = load_recipe(
        "quickstart",
        [
            f"model.pooling={pooling}",
            "model.projection=batchnorm",
            "model.generator=/home/alice/models/generator",
            "data.files=[/home/alice/corpus.txt.gz]",
            "data.cache_dir=/scratch/alice/cache",
            "evaluation.data=/home/alice/sts",
            *overrides,
        ],
    )
    folder.mkdir()
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False))
    (folder / "run.json").write_text(json.dumps(RECORD))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in METRICS))
    (folder / "result.json").write_text(json.dumps(RESULT))
    (folder / "curves.png").write_bytes(b"\x89PNG")
    (folder / "evaluation").mkdir()
    for suite in (STS, TRANSFER):
        (folder / "evaluation" / f"{suite['suite']}.json").write_text(json.dumps(suite))
    export_sentence_transformer(tiny_bert(), tiny_tokenizer(), pooling, MAX_LENGTH, folder / "model")
    save_file(trained_projection().state_dict(), folder / "projection.safetensors")
    return folder
