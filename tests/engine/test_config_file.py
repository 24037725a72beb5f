"""A DeepSpeed configuration as users write it: what it cannot mean is told by file and key before torch is imported."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from diffcse_scale.engine.config_file import load_deepspeed_config, shipped_configs
from diffcse_scale.foundation.errors import InputError


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "mine.json"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"a": "\xe9"}', " is not UTF-8 at byte 8"),
        (b"[" * 100_000, " is nested too deeply"),
        (b'{"zero_optimization": ' * 900, " is n"),
        (b'{"zero_optimization": {"stage": 2, "stage": 3}}', ": key 'stage' is given twice"),
        (b'{"steps_per_print": NaN}', ": steps_per_print is nan"),
        (b'{"zero_optimization": {"reduce_bucket_size": 1e999}}', ": zero_optimization.reduce_bucket_size is inf"),
        (b'{"steps_per_print": ' + b"9" * 5000 + b"}", ": Exceeds the limit"),
        (b'["bf16"]', " must be a JSON object"),
        (b"", " is not valid JSON"),
        (b'{"%s": 1}' % (b"k" * 9999), ": unknown key kkk"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_is_no_json_object_is_told(file: Path, content: bytes, words: str) -> None:
    file.write_bytes(content)
    with pytest.raises(InputError) as error:
        load_deepspeed_config(file)
    assert f"mine.json{words}" in str(error.value) and len(str(error.value)) < 400


def test_what_the_parser_still_reads_but_we_do_not_is_told(file: Path) -> None:
    depth = sys.getrecursionlimit() // 2  # some libraries raise the limit
    file.write_bytes(b'{"zero_optimization": ' * depth + b"1" + b"}" * depth)
    with pytest.raises(InputError, match="is nested too deeply"):
        load_deepspeed_config(file)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"zero_optimization": 2}, "zero_optimization must be an object"),
        ({"zero_optimization": {"stage": "auto"}}, "zero_optimization.stage is 'auto'; set it to 0, 1, 2 or 3"),
        ({"steps_per_print": 0}, "steps_per_print must be at least 1, not 0"),
        ({"steps_per_print": True}, "steps_per_print must be a whole number, not True"),
        ({"train_batch_size": [64]}, "train_batch_size must be a whole number, not [64]"),
        ({"wall_clock_breakdown": "yes"}, "wall_clock_breakdown must be true or false, not 'yes'"),
        ({"communication_data_type": 16}, "communication_data_type must be text, not 16"),
        ({"flops_profiler": {"profile_step": "x"}}, "flops_profiler.profile_step must be a whole number, not 'x'"),
        ({"bf16": {"enabled": "false"}}, "bf16.enabled must be true or false, not 'false'"),
        ({"fp16": {"enabled": "off", "loss_scale": 0}}, "fp16.enabled must be true or false, not 'off'"),
        ({"torch_autocast": {"dtyp": "bf16"}}, "unknown key torch_autocast.dtyp (did you mean dtype?)"),
        ({"timers": {"throughputs": {}}}, "unknown key timers.throughputs (did you mean throughput?)"),
        ({"optimizer": {"type": "AdamW"}}, "optimizer belongs in the recipe (optimizer); remove it"),
    ],
    ids=str,
)
def test_a_value_of_another_kind_is_told(file: Path, config: Any, words: str) -> None:
    file.write_text(json.dumps(config))
    with pytest.raises(InputError) as error:
        load_deepspeed_config(file)
    assert f"mine.json: {words}" in str(error.value)


def test_what_a_file_leaves_open_is_left_out(file: Path) -> None:
    """As files for the Hugging Face Trainer have it; a byte order mark is Windows' way to say UTF-8."""
    config = {
        "fp16": {"enabled": "auto", "loss_scale": 0},
        "bf16": {"enabled": "auto"},
        "zero_optimization": {"stage": 2, "reduce_bucket_size": "auto", "allgather_bucket_size": 2e8},
        "gradient_clipping": "auto",
        "train_batch_size": "auto",
        "steps_per_print": 2e3,
        "zero_force_ds_cpu_optimizer": "auto",
        "wandb": None,
    }
    file.write_text(json.dumps(config), encoding="utf-8-sig")
    assert load_deepspeed_config(file) == {
        "fp16": {"loss_scale": 0},
        "bf16": {"enabled": "auto"},
        "zero_optimization": {"stage": 2, "allgather_bucket_size": 2e8},
        "steps_per_print": 2000,
        "zero_force_ds_cpu_optimizer": "auto",
    }


def test_a_shipped_configuration_is_given_by_name_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path(__file__).parents[2] / "ds_configs"
    assert sorted(shipped_configs()) == sorted(file.stem for file in folder.glob("*.json"))
    for name in shipped_configs():
        assert load_deepspeed_config(name) == load_deepspeed_config(folder / f"{name}.json")
    assert load_deepspeed_config(None) == load_deepspeed_config("zero2")
    with pytest.raises(InputError, match=r"zero4 cannot be read: no such file; shipped are zero0, zero1, "):
        load_deepspeed_config("zero4")
