"""All shipped configurations train alike: `deepspeed --num_gpus 2 train.py` with each of them.

The truth is stage 0, which shards nothing. On real text InfoNCE agrees to 1e-6 in the first step, and the whole loss
(0.86 at first) to 1e-4 over 20: the stages add gradients up in different orders, and Adam makes a little more of that
with each step. Offload computes the same on tensors that lie elsewhere: to 1e-5 over 12 steps, as two runs of one
configuration agree.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.devices import tolerance
from tests.support.launch import ROOT, launch, metrics

STEPS = 20


def _train(name: str, folder: Path, *arguments: str) -> list[float]:
    """The losses of a run with the shipped configuration `name`, which leaves its files in `folder`/`name`."""
    config = json.loads((ROOT / "ds_configs" / f"{name}.json").read_text())
    if config["zero_optimization"]["stage"] == 3:
        # persistence 0: else ZeRO-3 leaves small tensors whole and hides mistakes with partitioned ones
        config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    file, run = folder / f"{name}.json", folder / name
    file.write_text(json.dumps(config))
    result = launch("--deepspeed_config", str(file), "--output", str(run), *arguments, "log_every=1")
    assert result.returncode == 0, result.stdout
    return [row["loss"] for row in metrics(run) if "loss" in row]


@pytest.mark.device
@pytest.mark.slow
@pytest.mark.realdata
def test_all_stages_give_the_same_losses_in_float32(tmp_path, data_folder, models_folder):
    losses, contrastive = {}, {}
    for stage in range(4):
        losses[stage] = _train(
            *(f"zero{stage}", tmp_path, "--recipe", "quickstart"),
            *(f"data.files={data_folder}/corpus/wiki_en-00000-of-00004.txt.gz", "data.limit=2000"),
            *(f"data.cache_dir={tmp_path}/cache", f"max_steps={STEPS}", "evaluation.data=null"),
        )
        assert len(losses[stage]) == STEPS
        contrastive[stage] = next(row["contrastive"] for row in metrics(tmp_path / f"zero{stage}") if "loss" in row)
    for stage in (1, 2, 3):
        # not the whole loss: another rounding may draw another token where two are equally near (seen on an AMD EPYC)
        assert contrastive[stage] == pytest.approx(contrastive[0], rel=tolerance(1e-6, 1e-2))
        assert losses[stage] == pytest.approx(losses[0], rel=0, abs=tolerance(1e-4, 0.1))


@pytest.mark.device
@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_offload_gives_the_same_numbers_and_compiles_nothing(toy_world, tmp_path, monkeypatch, stage):
    compiled = tmp_path / "extensions"
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(compiled))
    names = (f"zero{stage}", f"zero{stage}_offload")
    plain, offloaded = (_train(name, tmp_path, "--recipe", str(toy_world / "toy.yaml")) for name in names)
    assert len(plain) == 12 and offloaded == pytest.approx(plain, rel=tolerance(1e-5, 0.1))
    assert not compiled.exists()


@pytest.mark.slow
@pytest.mark.device
def test_every_shipped_configuration_learns_the_same_in_chunks_and_at_once(toy_world, tmp_path):
    found = {}
    for chunk in ("null", "4"):
        (tmp_path / chunk).mkdir()
        options = ("--recipe", str(toy_world / "toy.yaml"), "model.dropout=0", "max_steps=4", "evaluation.data=null")
        for config in (ROOT / "ds_configs").glob("*.json"):
            _train(config.stem, tmp_path / chunk, *options, f"batch.chunk={chunk}")
            rows = [row for row in metrics(tmp_path / chunk / config.stem) if "loss" in row]
            found[config.stem, chunk] = {name: [row[name] for row in rows] for name in ("rtd", "contrastive")}
    assert len(found) == 12
    truth = found["zero0", "null"]
    for way, losses in found.items():
        assert len(losses["rtd"]) == 4 and losses["rtd"] == pytest.approx(truth["rtd"], rel=tolerance(2e-5, 0.1)), way
        # without dropout both views are equal, so InfoNCE's gradient is hardly more than rounding, which Adam enlarges
        assert losses["contrastive"] == pytest.approx(truth["contrastive"], rel=0, abs=tolerance(1e-4, 0.01)), way
