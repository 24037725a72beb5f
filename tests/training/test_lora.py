"""A run with adapters on a frozen encoder: what its checkpoints hold, and that it resumes from them."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel

from tests.support.launch import ROOT, launch, metrics


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_a_run_with_adapters_resumes_bit_for_bit_from_a_checkpoint_without_the_base(stage, toy_world, tmp_path):
    config = json.loads((ROOT / "ds_configs" / f"zero{stage}.json").read_text())
    if stage == 3:
        config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    (tmp_path / "ds.json").write_text(json.dumps(config))
    common = ("--deepspeed_config", str(tmp_path / "ds.json"), "--recipe", str(toy_world / "toy.yaml"))
    lora = "model.lora={rank: 4}"
    result = launch(*common, "--output", str(tmp_path / "run"), lora)
    assert result.returncode == 0, result.stdout

    checkpoint = tmp_path / "run" / "checkpoints" / "step-00000006"
    file = next(iter(sorted(checkpoint.glob("*model_states.pt"))))
    saved = torch.load(file, weights_only=False)
    if stage == 2:  # at ZeRO-3 the shards of the parameters lie with the optimizer, which has the trained ones only
        trained = [name for group in saved["param_shapes"] for name in group]
        assert not any(name.startswith("encoder.") for name in saved["module"])
        encoder = [name for name in trained if name.startswith("encoder.")]
        assert encoder and all(".lora_" in name for name in encoder)
        assert any(name.startswith("discriminator.") for name in trained)

    shutil.copytree(tmp_path / "run", tmp_path / "resumed")
    (tmp_path / "resumed" / "result.json").unlink()
    shutil.rmtree(tmp_path / "resumed" / "model")
    result = launch(*common, "--output", str(tmp_path / "resumed"), "--resume", lora)
    assert result.returncode == 0, result.stdout
    assert "Resuming after step 6 of 12" in result.stdout
    assert metrics(tmp_path / "resumed") == metrics(tmp_path / "run")

    # the export is a plain BERT whose adapted weights have moved and whose others have not
    exported = load_file(tmp_path / "run" / "model" / "model.safetensors")
    base = AutoModel.from_pretrained(toy_world / "model", add_pooling_layer=False).state_dict()
    assert exported.keys() == base.keys()
    moved = {name for name, tensor in exported.items() if not torch.equal(tensor, base[name])}
    assert moved == {name for name, tensor in base.items() if tensor.ndim == 2 and "embeddings" not in name}
