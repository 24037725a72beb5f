"""Which device a rank takes, and what is told before any rank waits for another."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest

from diffcse_scale.distributed import local_rank
from diffcse_scale.engine import launch
from diffcse_scale.foundation.errors import InputError


@pytest.fixture
def devices(monkeypatch):
    """Ranks join nobody; returns a function that makes so many visible devices, and lists the ones that are taken."""
    monkeypatch.setattr(launch, "join", lambda *_: None)
    monkeypatch.setattr(launch.deepspeed, "init_distributed", lambda: None)
    monkeypatch.setattr(launch, "device", lambda: SimpleNamespace(type="cuda"))
    monkeypatch.setenv("DIFFCSE_LOCAL_RANK", "")  # so that it is put back
    monkeypatch.delenv("DIFFCSE_LOCAL_RANK")

    def visible(count: int) -> list[int]:
        taken: list[int] = []
        accelerator = SimpleNamespace(
            device_name=lambda: "cuda",
            device_count=lambda: count,
            set_device=taken.append,
            communication_backend_name=lambda: "nccl",
        )
        monkeypatch.setattr(launch, "get_accelerator", lambda: accelerator)
        return taken

    return visible


def as_rank(monkeypatch, number: int, **more: str) -> None:
    for name, value in {"RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": "8", **more}.items():
        monkeypatch.setenv(name, value)


def test_of_all_devices_a_rank_takes_the_one_of_its_number(devices, monkeypatch):
    taken = devices(8)
    as_rank(monkeypatch, 5)
    launch.start_process_group()
    assert (taken, os.environ["LOCAL_RANK"]) == ([5], "5")


def test_where_each_task_sees_one_device_every_rank_takes_the_first(devices, monkeypatch):
    """srun --gpus-per-task=1, --gpu-bind=single:1, a MIG slice a task: DeepSpeed reads LOCAL_RANK by itself."""
    taken = devices(1)
    as_rank(monkeypatch, 5)
    launch.start_process_group()
    assert (taken, os.environ["LOCAL_RANK"]) == ([0], "0")
    assert local_rank() == 5  # which still says who prints


def test_more_ranks_than_devices_are_refused(devices, monkeypatch):
    devices(4)
    as_rank(monkeypatch, 5)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with pytest.raises(InputError, match=r"number 5 on .*, where devices are visible: 4; start as many"):
        launch.start_process_group()


def test_more_ranks_than_the_one_device_are_refused_where_a_launcher_has_named_more(devices, monkeypatch):
    """deepspeed --num_gpus 2 on a machine with one GPU: both ranks would take it."""
    devices(1)
    as_rank(monkeypatch, 1, CUDA_VISIBLE_DEVICES="0,1")
    with pytest.raises(InputError, match=r"number 1 on .*, where devices are visible: 1; start as many"):
        launch.start_process_group()


def test_a_gpu_that_cannot_be_used_is_no_reason_to_train_on_the_cpu_in_silence(monkeypatch):
    monkeypatch.setattr(launch, "left_idle", lambda: "/dev/nvidia0")
    monkeypatch.setattr(launch, "device_error", lambda: "Torch not compiled with CUDA enabled")
    with pytest.raises(InputError, match=r"has /dev/nvidia0: Torch not compiled .*; fix that, or set DS_ACCELERATOR"):
        launch.start_process_group()


def test_a_rank_on_cpus_starts_no_compiler(devices, monkeypatch):
    """DeepSpeed's table of what could be compiled is never made: it asks gcc, on every rank."""
    devices(1)
    monkeypatch.setattr(launch.get_accelerator(), "device_name", lambda: "cpu")
    monkeypatch.setitem(vars(launch.deepspeed.ops), "__compatible_ops__", None)  # so that it is put back
    monkeypatch.delitem(vars(launch.deepspeed.ops), "__compatible_ops__")
    monkeypatch.setattr(launch.deepspeed.ops, "_probe_compatible_ops", lambda: pytest.fail("gcc was asked"))
    as_rank(monkeypatch, 0)
    launch.start_process_group()
    assert not launch.deepspeed.ops.__compatible_ops__.get("deepspeed_shm_comm", False)
