"""Every section is read by DeepSpeed's own classes before an engine exists, and its refusal names file and key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from diffcse_scale.engine.configuration import complete_config
from diffcse_scale.engine.refusals import refusals_explained
from diffcse_scale.foundation.errors import InputError
from diffcse_scale.recipe_file import load_recipe

RECIPE = load_recipe("quickstart")
FP16 = {"enabled": True}


@pytest.mark.parametrize(
    ("config", "words"),
    [
        # pydantic's errors
        (
            {"zero_optimization": {"stage": 2, "reduce_bucket_sise": 1}},
            "unknown key zero_optimization.reduce_bucket_sise (did you mean reduce_bucket_size?)",
        ),
        ({"zero_optimization": {"stage": 7}}, "zero_optimization.stage: input should be 0, 1, 2 or 3 (given: 7)"),
        ({"zero_optimization": {"offload_optimizer": "cpu"}}, "zero_optimization.offload_optimizer: input should be"),
        (
            {"zero_optimization": {"offload_optimizer": {"devise": "cpu"}}},
            "unknown key zero_optimization.offload_optimizer.devise",
        ),
        ({"tensorboard": {"path": "x"}}, "unknown key tensorboard.path"),
        ({"comms_logger": {"x": 1}}, "unknown key comms_logger.x"),
        ({"bf16": {"enabled": "perhaps"}}, "bf16.enabled: input should be a valid boolean"),
        ({"fp16": {"enabled": True, "loss_scale": -1}}, "fp16.loss_scale"),
        # and others
        ({"fp16": FP16, "bf16": {"enabled": True}}, "bfloat16 and fp16 modes cannot be simultaneously enabled"),
        ({"bf16": {"enabled": True, "bf16_optimizer_states": True}}, "bf16_optimizer_states is only supported with"),
        ({"communication_data_type": "fp99"}, "Invalid communication_data_type"),
        ({"torch_autocast": {"enabled": True, "dtype": "float17"}}, "torch_autocast.dtype must be fp32, fp16 or bf16"),
        ({"data_types": {"grad_accum_dtype": "x"}}, "data_types.grad_accum_dtype must be fp32, fp16 or bf16, not 'x'"),
        ({"checkpoint": {"tag_validation": "perhaps"}}, "checkpoint: "),
        ({"checkpoint": {"writer": {"type": "x"}}}, "checkpoint: writer contains invalid value X"),
        ({"zero_optimization": {"mics_shard_size": 1}}, "MiCS ZeRO-3 sharding has been removed"),
        # and what was never meant to be one
        ({"checkpoint": {"writer": 3}}, "checkpoint: "),
        ({"aio": 3}, "aio: "),
    ],
    ids=str,
)
def test_what_deepspeed_refuses_is_told_with_file_and_key(config: Any, words: str) -> None:
    with pytest.raises(InputError) as error:
        complete_config(config, RECIPE, 4, "DeepSpeed configuration mine.json")
    assert f"DeepSpeed configuration mine.json: {words}" in str(error.value)
    assert str(error.value).endswith("(DeepSpeed refuses it).") and "\n" not in str(error.value)


@pytest.mark.parametrize("stage", ["2", 2.0, 2])
def test_the_stage_is_a_number_afterwards(stage: Any) -> None:
    found = complete_config({"zero_optimization": {"stage": stage}}, RECIPE, 4)["zero_optimization"]["stage"]
    assert found == 2 and type(found) is int


def test_what_the_engine_refuses_is_told_and_its_own_errors_are_not_hidden() -> None:
    with pytest.raises(InputError, match="DeepSpeed configuration: no nvme here"), refusals_explained():
        raise AssertionError("no nvme here\nand more")
    with pytest.raises(InputError, match="async_io op"), refusals_explained():
        raise RuntimeError("Unable to JIT load the async_io op due to it not being compatible")
    with pytest.raises(InputError, match="Not a directory"), refusals_explained():
        Path("/dev/null/csv").mkdir()
    with pytest.raises(RuntimeError, match="out of memory"), refusals_explained():
        raise RuntimeError("out of memory")
    with pytest.raises(ZeroDivisionError), refusals_explained():
        _ = 1 / 0
