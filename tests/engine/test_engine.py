"""DeepSpeed configurations: completed from the recipe, and refused where they contradict it or would be ignored."""

from __future__ import annotations

import json
import os
import socket
from unittest import mock

import pytest
import torch

from diffcse_scale.engine import engine as engine_module
from diffcse_scale.engine import launch
from diffcse_scale.engine.config_file import load_deepspeed_config
from diffcse_scale.engine.configuration import complete_config, precision
from diffcse_scale.engine.engine import initialize, move_buffers
from diffcse_scale.engine.optimizer import make_optimizer
from diffcse_scale.foundation.errors import InputError
from diffcse_scale.recipe import BatchRecipe
from diffcse_scale.recipe_file import load_recipe
from tests.support.launch import ROOT
from tests.support.ranks import run_ranks
from tests.support.toys import toy_model

RECIPE = load_recipe("quickstart")


def _file(tmp_path, content):
    file = tmp_path / "ds.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return file


@pytest.mark.parametrize("name", ["zero0", "zero1", "zero2", "zero3", "zero2_offload", "zero3_offload"])
def test_shipped_configurations_are_complete_after_ours(name):
    config = complete_config(load_deepspeed_config(ROOT / "ds_configs" / f"{name}.json"), RECIPE, 4)
    assert config["zero_optimization"]["stage"] == int(name[4])
    assert (config["train_batch_size"], config["train_micro_batch_size_per_gpu"]) == (64, 16)
    assert (config["gradient_accumulation_steps"], config["gradient_clipping"]) == (1, RECIPE.optimizer.clip)


def test_auto_precision_is_float32_on_a_cpu():
    config = complete_config(load_deepspeed_config(None), RECIPE, 4)
    assert config["torch_autocast"]["enabled"] is False
    assert precision(config) == "float32"


def test_a_batch_size_that_agrees_is_accepted():
    assert complete_config({"train_batch_size": 64}, RECIPE, 4)["train_batch_size"] == 64


def test_shares_that_differ_by_a_sentence_are_the_largest_to_deepspeed():
    """It wants sizes of which one is the product of the others; the recipe's own are what a file may say."""
    config = complete_config({"train_batch_size": 64}, RECIPE, 3)
    assert (config["train_batch_size"], config["train_micro_batch_size_per_gpu"]) == (66, 22)
    with pytest.raises(InputError, match=r"train_batch_size = 66, .*64 = up to 22 sentences per device x 3 devices"):
        complete_config({"train_batch_size": 66}, RECIPE, 3)


@pytest.mark.parametrize("key", ["train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"])
def test_a_batch_size_that_contradicts_the_recipe_gets_the_arithmetic(key):
    with pytest.raises(InputError, match=rf"{key} = 48, .*64 = 16 sentences per device x 4 devices x 1 accumulation"):
        complete_config({key: 48}, RECIPE, 4)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"zero_optimisation": {"stage": 2}}, "unknown key zero_optimisation .did you mean zero_optimization"),
        ({"optimizer": {"type": "Adam"}}, "optimizer belongs in the recipe"),
        ({"scheduler": {}}, "scheduler belongs in the recipe"),
        ({"gradient_clipping": 1.0}, r"gradient_clipping belongs in the recipe .optimizer.clip"),
        ("{", "not valid JSON"),
        ("[]", "must be a JSON object"),
    ],
)
def test_what_deepspeed_would_ignore_or_override_is_refused(tmp_path, content, words):
    with pytest.raises(InputError, match=words):
        load_deepspeed_config(_file(tmp_path, content))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"nowhere\.json cannot be read"):
        load_deepspeed_config(tmp_path / "nowhere.json")


def test_fp16_is_refused_where_the_device_lacks_it(monkeypatch):
    monkeypatch.setattr(type(launch.get_accelerator()), "is_fp16_supported", lambda self: False)
    with pytest.raises(InputError, match="asks for fp16"):
        complete_config({"fp16": {"enabled": True}}, RECIPE, 4)


def test_only_matrices_are_decayed():
    recipe = load_recipe("quickstart", ["optimizer.weight_decay=0.1"])
    model = toy_model(recipe.objective)
    decayed, kept = make_optimizer(model, recipe).param_groups
    assert decayed["weight_decay"] == 0.1 and kept["weight_decay"] == 0.0
    assert all(p.ndim > 1 for p in decayed["params"]) and all(p.ndim == 1 for p in kept["params"])
    assert len(decayed["params"]) + len(kept["params"]) == len(list(model.parameters()))


@pytest.mark.parametrize("content", [{"bf16": True}, {"zero_optimization": 2}])
def test_a_section_that_is_no_object_is_refused(tmp_path, content):
    with pytest.raises(InputError, match="must be an object"):
        load_deepspeed_config(_file(tmp_path, content))


def test_a_rank_has_its_device_before_the_first_collective(monkeypatch):
    events = []
    accelerator = type(launch.get_accelerator())
    monkeypatch.setattr(accelerator, "set_device", lambda self, index: events.append(("device", index)))
    monkeypatch.setattr(launch, "join", lambda *_: events.append("process group"))
    monkeypatch.setattr(launch.deepspeed, "init_distributed", lambda: None)
    for name, value in {"RANK": "5", "LOCAL_RANK": "3", "WORLD_SIZE": "8"}.items():
        monkeypatch.setenv(name, value)
    launch.start_process_group()
    assert events == [("device", 3), "process group"]


@pytest.mark.parametrize("users", [None, *launch.ALLOCATOR_VARIABLES])
def test_memory_may_grow_before_cuda_starts_unless_the_user_says_otherwise(monkeypatch, users):
    for name in launch.ALLOCATOR_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    if users:
        monkeypatch.setenv(users, "max_split_size_mb:512")
    settings = []

    def set_device(*_):
        settings.extend((name, os.environ[name]) for name in launch.ALLOCATOR_VARIABLES if name in os.environ)

    monkeypatch.setattr(type(launch.get_accelerator()), "set_device", set_device)
    monkeypatch.setattr(launch, "join", lambda *_: None)
    monkeypatch.setattr(launch.deepspeed, "init_distributed", lambda: None)
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)
    launch.start_process_group()
    expected = (users, "max_split_size_mb:512") if users else ("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    assert settings == [expected]


def test_processes_without_ranks_do_not_become_runs_of_their_own(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    with pytest.raises(InputError, match="srun started 2 processes without RANK"):
        launch.start_process_group()


def test_a_run_of_one_process_takes_a_port_of_its_own(monkeypatch):
    ports = []
    monkeypatch.setattr(launch, "join", lambda *_: ports.append(os.environ["MASTER_PORT"]))
    monkeypatch.setattr(launch.deepspeed, "init_distributed", lambda: None)
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_PORT": "29500"}.items():
        monkeypatch.setenv(name, value)
    launch.start_process_group()
    assert ports != ["29500"]


def test_a_port_that_is_taken_is_named(monkeypatch):
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        taken = other.getsockname()[1]
        addresses = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(taken)}
        for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", **addresses}.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(InputError, match=f"Port {taken} is in use"):
            launch.start_process_group()


def test_a_key_given_twice_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"\.json: key 'stage' is given twice"):
        load_deepspeed_config(_file(tmp_path, '{"zero_optimization": {"stage": 2, "stage": 0}}'))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"fp16": {"enabled": True}}, "fp16 at ZeRO stage 0"),
        ({"fp16": {"enabled": True}, "zero_optimization": {"stage": 0}}, "fp16 at ZeRO stage 0"),
        *(
            (
                {"torch_autocast": {"enabled": True, "dtype": "float16"}, "zero_optimization": {"stage": stage}},
                f"float16 at ZeRO stage {stage}",
            )
            for stage in (1, 2, 3)
        ),
    ],
)
def test_float16_is_refused_where_deepspeed_mistakes_the_loss_scale(monkeypatch, config, words):
    monkeypatch.setattr(type(launch.get_accelerator()), "is_fp16_supported", lambda self: True)
    with pytest.raises(InputError, match=words):
        complete_config(config, RECIPE, 4)


@pytest.mark.parametrize(
    "config",
    [
        *({"fp16": {"enabled": True}, "zero_optimization": {"stage": stage}} for stage in (1, 2, 3)),
        {"torch_autocast": {"enabled": True, "dtype": "float16"}},
        {"torch_autocast": {"enabled": True, "dtype": "bfloat16"}, "zero_optimization": {"stage": 2}},
    ],
)
def test_float16_is_allowed_where_it_is_right(monkeypatch, config):
    monkeypatch.setattr(type(launch.get_accelerator()), "is_fp16_supported", lambda self: True)
    complete_config(config, RECIPE, 4)


def _engine(config):
    launch.start_process_group()
    recipe = RECIPE.model_copy(update={"batch": BatchRecipe(sentences=2)})
    return initialize(torch.nn.Linear(4, 4), recipe, complete_config(config, recipe, 1))


def _waits_for_the_device():
    found, accelerator = [], type(launch.get_accelerator())
    for config in ({}, {"timers": {"throughput": {"enabled": True}}}):
        engine = _engine(config)
        with mock.patch.object(accelerator, "synchronize") as synchronize:
            for _ in range(3):
                engine.backward(engine(torch.ones(2, 4)).sum())
                engine.step()
        found.append(synchronize.called)
    return found


def test_deepspeeds_timer_waits_for_the_device_only_where_it_is_asked_for(tmp_path):
    assert run_ranks(_waits_for_the_device, 1, tmp_path) == [[False, True]]


def test_buffers_follow_the_engines_device():
    """ZeRO-3 loads networks onto its device and leaves the buffers of what is built around them where they are."""
    module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    move_buffers(module, torch.device("meta"))
    assert {buffer.device.type for buffer in module.buffers()} == {"meta"}
    assert {parameter.device.type for parameter in module.parameters()} == {"cpu"}
    assert "1.running_mean" in module.state_dict()


def _buffers_are_moved():
    with mock.patch.object(engine_module, "move_buffers") as moved:
        engine = _engine({})
    return moved.call_args.args == (engine.module, engine.device)


def test_an_engine_moves_the_buffers_of_its_module(tmp_path):
    assert run_ranks(_buffers_are_moved, 1, tmp_path) == [True]
