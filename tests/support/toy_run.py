"""Runs made by hand: folders as training leaves them, with networks of the toy world and numbers that are known."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import yaml

from diffcse_scale.export import export_sentence_transformer
from diffcse_scale.foundation.environment import environment
from diffcse_scale.model.backbone import load_tokenizers
from diffcse_scale.model.build import build_model
from diffcse_scale.recipe_file import load_recipe
from diffcse_scale.training.schedule import make_plan

STEPS = 12


CHECKPOINT = 8


def rows(shift: float = 0.0) -> list[dict[str, Any]]:
    """Of metrics.jsonl: a log line every 4 steps and evaluations before and after."""
    found: list[dict[str, Any]] = [
        {"step": 0, "dev_spearman": 30.5 + shift, "dev_spearman_mean": 21.25, "evaluation_seconds": 2.0}
    ]
    for number, step in enumerate(range(4, STEPS + 1, 4)):
        line = {"step": step, "loss": 3.1235 / (1 + number) + shift, "contrastive": 2.5 / (1 + number), "rtd": 0.625}
        line |= {"learning_rate": 1e-3 / step, "rtd_recall_kept": 0.9, "an_own_number": step * 1.5}
        line |= {"training_seconds": 30.0, "waiting_seconds": 3.0, "checkpoint_seconds": 1.0 if number else 0.0}
        found.append(line)
    return [*found, {"step": STEPS, "dev_spearman": 45.678 + shift, "evaluation_seconds": 5.0}]


def evaluation(value: float) -> dict[str, Any]:
    """Of evaluation/sts.json, as `evaluate` writes it."""
    task = {"group": "test", "measure": "Spearman x 100", "count": 3108, "remark": ""}
    return {
        "suite": "sts", "model": "m", "pooling": "its own pooling", "max_length": 32, "data": "sts",
        "date": "2026-01-02",
        "tasks": [
            {**task, "name": "STS12", "value": value, "interval": [value - 2.5, value + 2.25]},
            {**task, "name": "STS13", "value": None, "interval": None, "remark": "undefined: all scores are equal"},
        ],
        "means": [{"name": "mean of the seven", "measure": "Spearman x 100", "value": value + 1, "interval": None}],
        "details": {}, "environment": {},
    }  # fmt: skip


def write_run(world: Path, folder: Path, *overrides: str, shift: float = 0.0, finished: bool = True) -> Path:
    """A run of the toy recipe; its networks are the pretrained ones with noise on every weight."""
    recipe = load_recipe(str(world / "toy.yaml"), overrides)
    folder.mkdir(parents=True)
    _write(folder / "recipe.yaml", yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False))
    facts = {"command": f"train.py --output {folder.name}", "plan": asdict(make_plan(recipe, 600, 2, 2))}
    facts |= {"precision": "float32", "data_fingerprint": "0123456789abcdef", "interconnect": {}}
    _write(
        folder / "run.json",
        {**facts, "deepspeed_config": {"zero_optimization": {"stage": 2}}, "environment": environment()},
    )
    _write(folder / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows(shift)))
    _write(folder / "incarnations.jsonl", json.dumps({"began": 1000.0, "step": 0, "process": 1, "host": "h"}) + "\n")
    tokenizers = load_tokenizers(recipe.model)
    model = build_model(recipe, tokenizers)
    torch.manual_seed(recipe.seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    checkpoint = folder / "checkpoints" / f"step-{CHECKPOINT:08d}"
    checkpoint.mkdir(parents=True)
    torch.save({"module": model.state_dict()}, checkpoint / "mp_rank_00_model_states.pt")
    _write(checkpoint / "training_state.json", {"step": CHECKPOINT, "zero_stage": 2, "world_size": 2})
    target = folder / ("model" if finished else f"best/step-{CHECKPOINT:08d}")
    pooling, length = recipe.model.pooling, recipe.evaluation.max_length
    export_sentence_transformer(model.encoder.backbone, tokenizers.encoder, pooling, length, target)
    status = {"state": "finished" if finished else "training", "step": STEPS, "steps": STEPS, "updated": 1200.0}
    _write(folder / "status.json", status)
    if finished:
        before = {"dev_spearman": 30.5 + shift, "dev_spearman_mean": 21.25}
        result = {"steps": STEPS, "before": before, "best": {"step": STEPS, "dev_spearman": 45.678 + shift}}
        _write(folder / "result.json", {**result, "dev_rtd_auroc": 0.7125, "dev_rtd_replaced": 5159.0})
        _write(folder / "evaluation" / "sts.json", evaluation(55.25 + shift))
    return folder


def _write(file: Path, content: Any) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_text(content if isinstance(content, str) else json.dumps(content))
