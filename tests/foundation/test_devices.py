"""GPUs that are there and are not used are told, unless the user has said that the CPU is meant."""

from __future__ import annotations

import pytest
import torch

from diffcse_scale.foundation import devices
from diffcse_scale.foundation.devices import device_error, left_idle

JOB = {"SLURM_JOB_ID": "7", "SLURM_GPUS_ON_NODE": "4"}


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """torch can use nothing here; a test says what the machine shows."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.setattr(devices, "device_files", lambda: [])


def test_without_a_gpu_nothing_is_left_idle():
    assert left_idle({}) is None
    assert left_idle({"SLURM_JOB_ID": "7", "SLURM_GPUS_ON_NODE": "0"}) is None


def test_a_drivers_file_or_a_jobs_gpus_are_told(monkeypatch):
    assert left_idle(JOB) == "SLURM_GPUS_ON_NODE=4"
    monkeypatch.setattr(devices, "device_files", lambda: ["/dev/nvidia0", "/dev/nvidia1"])
    assert left_idle({}) == "/dev/nvidia0"


@pytest.mark.parametrize(
    "meant", [{"DS_ACCELERATOR": "cpu"}, {"CUDA_VISIBLE_DEVICES": ""}, {"CUDA_VISIBLE_DEVICES": "-1"}], ids=str
)
def test_whoever_means_the_cpu_gets_it(monkeypatch, meant):
    monkeypatch.setattr(devices, "device_files", lambda: ["/dev/nvidia0"])
    assert left_idle({**JOB, **meant}) is None
    assert left_idle({**JOB, "CUDA_VISIBLE_DEVICES": "0,1"}) is not None


def test_devices_that_are_used_are_not_idle(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    assert left_idle(JOB) is None


def test_torchs_reason_is_one_clause(monkeypatch):
    def init():
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 11040). Please update.\nMore.")

    monkeypatch.setattr(torch.cuda, "init", init)
    assert device_error() == "The NVIDIA driver on your system is too old (found version 11040)"
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert device_error() == "torch sees no device"
