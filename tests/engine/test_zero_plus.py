"""ZeRO-3 whose weights are whole within a node too learns what plain ZeRO-3 learns, and is resumed in other shapes.

The truth is plain ZeRO-3 on as many ranks: only where weights are gathered from is another, so that losses are equal to
the last bit. On two ranks sums are taken in another order: losses (0.9 at first) agree to 1e-4, as everywhere.
Encoder and discriminator are two networks, which DeepSpeed 0.19.8 by itself cannot load with groups of ranks.
`tests/checkpoints/test_resharding.py` holds the state of a resume to the last bit, into such groups too.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from diffcse_scale.engine import zero_plus as module
from diffcse_scale.engine.configuration import complete_config
from diffcse_scale.engine.engine import partitioned_loading
from diffcse_scale.foundation.errors import InputError
from diffcse_scale.recipe_file import load_recipe
from tests.support.launch import launch, metrics
from tests.support.stopped_run import stopped

STEPS = 6


def zero3(**more: Any) -> dict[str, Any]:
    """Persistence 0: else ZeRO-3 leaves small tensors whole and hides mistakes with partitioned ones."""
    return {"zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0, **more}}


def losses(world: Path, run: Path, config: dict[str, Any], *more: str, ranks: int = 4) -> list[float]:
    """Of a run with replaced-token detection and two chunks a rank, or four."""
    file = run.with_suffix(".json")
    file.write_text(json.dumps(config))
    result = launch(
        *("--deepspeed_config", str(file), "--recipe", str(world / "toy.yaml"), "--output", str(run), *more),
        *(f"max_steps={STEPS}", "model.dropout=0", "batch.chunk=2", "evaluation.data=null", "checkpoint_every=3"),
        ranks=ranks,
    )
    assert result.returncode == 0, result.stdout
    return [row["loss"] for row in metrics(run) if "loss" in row]


@pytest.mark.slow
def test_weights_whole_within_nodes_change_no_loss_and_are_resumed_without(toy_world, tmp_path):
    plain = losses(toy_world, tmp_path / "plain", zero3())
    run = tmp_path / "within"
    assert losses(toy_world, run, zero3(zero_hpz_partition_size=2)) == plain
    assert len(plain) == STEPS
    resumed = losses(toy_world, stopped(run, "without", 3), zero3(), "--resume", ranks=2)
    assert resumed[:3] == plain[:3] and len(resumed) == STEPS
    assert resumed == pytest.approx(plain, rel=0, abs=1e-4)


@pytest.mark.parametrize(
    ("devices", "config", "message"),
    [
        (4, {"zero_optimization": {"stage": 2, "zero_hpz_partition_size": 2}}, "does nothing at ZeRO stage 2"),
        (
            4,
            {"zero_optimization": {"stage": 1, "zero_quantized_gradients": True}},
            "zero_quantized_gradients does noth",
        ),
        (6, zero3(zero_hpz_partition_size=4), "= 4 does not divide the 6 devices; set it to the number of devices of"),
        (
            4,
            {**zero3(zero_quantized_weights=True), "torch_autocast": {"enabled": True}},
            "cannot be used with torch_auto",
        ),
    ],
    ids=str,
)
def test_what_deepspeed_would_ignore_or_find_out_late_is_refused(devices, config, message):
    recipe = load_recipe("quickstart", [f"batch.sentences={12 * devices}"])
    with pytest.raises(InputError, match=message):
        complete_config(config, recipe, devices, "DeepSpeed configuration mine.json")


@pytest.mark.parametrize(("devices", "within"), [(4, 2), (2, 8), (4, 1), (1, 8)])
def test_groups_that_divide_the_devices_are_taken(devices, within):
    config = zero3(zero_hpz_partition_size=within)
    assert (
        complete_config(config, load_recipe("quickstart"), devices)["zero_optimization"] == config["zero_optimization"]
    )


class Accelerator:
    def __init__(self, name: str) -> None:
        self.device_name = lambda: name


@pytest.mark.parametrize("key", module.QUANTIZED)
def test_what_is_quantized_goes_to_deepspeed_on_gpus_and_is_refused_on_cpus_before_weights_are_read(key, monkeypatch):
    """Plans are made of it anywhere. Whether its kernels can be compiled, DeepSpeed finds out for itself."""
    recipe = load_recipe("quickstart")
    config = complete_config(zero3(**{key: True}), recipe, 4)
    monkeypatch.setattr(module, "get_accelerator", lambda: Accelerator("cuda"))
    with partitioned_loading(config, recipe):
        pass
    monkeypatch.setattr(module, "get_accelerator", lambda: Accelerator("cpu"))
    said = f"DeepSpeed has the kernels of {key} for GPUs only; remove it from the configuration"
    with pytest.raises(InputError, match=said), partitioned_loading(config, recipe):
        raise AssertionError("weights are read")


def test_a_deepspeed_that_makes_its_groups_otherwise_is_told(monkeypatch):
    monkeypatch.delattr(module.groups, module.MAKE)
    with pytest.raises(
        InputError, match=r"needs groups of ranks that DeepSpeed [\d.]+ makes in a way that is not known"
    ):
        module.check_zero_plus(zero3(zero_hpz_partition_size=2), 4, "mine.json")
    module.check_zero_plus(zero3(), 4, "mine.json")
