"""Half the bytes of z in InfoNCE cost no learning: curves of the embedded world in bfloat16, with and without.

Both runs see the same batches and dropout, and so does a third with another seed, whose curves say how far chance alone
takes two runs apart.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.support.launch import launch, metrics

BFLOAT16 = {"zero_optimization": {"stage": 1}, "torch_autocast": {"enabled": True, "dtype": "bfloat16"}}
STEPS = ("max_steps=60", "log_every=10", "evaluation.every=30", "model.projection=batchnorm", "optimizer.warmup=0")


def curves(folder: Path, *changes: str) -> tuple[np.ndarray, np.ndarray]:
    """InfoNCE at every tenth step, and Spearman x 100 on the development pairs."""
    config = folder.with_suffix(".json")
    config.write_text(json.dumps(BFLOAT16))
    arguments = ("--deepspeed_config", str(config), "--recipe", "quickstart", "--output", str(folder), *STEPS, *changes)
    result = launch(*arguments, ranks=1)
    assert result.returncode == 0, result.stdout
    assert "bfloat16 products" in result.stdout
    rows = metrics(folder)
    losses, scores = ([row[name] for row in rows if name in row] for name in ("contrastive", "dev_spearman"))
    return np.array(losses), np.array(scores)


@pytest.mark.slow
def test_z_in_bfloat16_learns_what_z_in_float32_does(tmp_path):
    losses, scores = curves(tmp_path / "model")
    before_losses, before_scores = curves(tmp_path / "float32", "objective.loss_precision=float32")
    chance_losses, _ = curves(tmp_path / "seed", "objective.loss_precision=float32", "seed=43")
    assert len(losses) == 6 and not np.array_equal(losses, before_losses)  # the switch does something
    assert losses[-1] < losses[0] / 2
    assert np.abs(losses / before_losses - 1).max() < 0.05
    assert np.abs(losses / before_losses - 1).mean() < np.abs(chance_losses / before_losses - 1).mean()
    assert abs(scores[-1] - before_scores[-1]) < 1.0
