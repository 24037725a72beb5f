"""`diffcse-scale train` on this machine, whatever CUDA_VISIBLE_DEVICES is: DeepSpeed's launcher fails at most of it."""

from __future__ import annotations

import pytest
from deepspeed.launcher.runner import apply_num_nodes_and_gpus, parse_args

from diffcse_scale.foundation.errors import InputError
from diffcse_scale.supervision.launchers import see_the_jobs_devices
from diffcse_scale.training import launcher


def ranks(options: list[str]) -> int:
    """How many DeepSpeed's launcher starts on a machine of eight devices."""
    found = parse_args([*options, "train.py"])
    return len(apply_num_nodes_and_gpus({"localhost": list(range(8))}, found.num_nodes, found.num_gpus)["localhost"])


@pytest.mark.parametrize(
    ("visible", "processes", "expected"),
    [
        ("4,5", None, 2),
        ("7", None, 1),
        ("GPU-2f1c,GPU-81aa,GPU-0001", None, 3),
        ("MIG-2f1c", None, 1),
        ("nonsense", None, 1),
        ("4,5,6", 2, 2),
        (None, None, 8),
        (None, 3, 3),
    ],
)
def test_ranks_see_the_devices_that_the_user_has_named(
    visible: str | None, processes: int | None, expected: int
) -> None:
    environ = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    options, environment = launcher.on_this_machine(processes, environ)
    assert ranks(options) == expected and "CUDA_VISIBLE_DEVICES" not in environment
    environment |= {} if visible is None else {"CUDA_VISIBLE_DEVICES": "0,1"}  # as the launcher tells its ranks
    see_the_jobs_devices(environment)
    assert environment == environ


@pytest.mark.parametrize("environ", [{"CUDA_VISIBLE_DEVICES": "-1"}, {"CUDA_VISIBLE_DEVICES": ""}], ids=str)
def test_hidden_devices_mean_the_cpu(environ: dict[str, str]) -> None:
    assert launcher.on_this_machine(2, environ) == (["--num_gpus", "2"], {"DS_ACCELERATOR": "cpu"})


def test_on_the_cpu_no_device_counts() -> None:
    environ = {"CUDA_VISIBLE_DEVICES": "0", "DS_ACCELERATOR": "cpu"}
    assert launcher.on_this_machine(2, environ) == (["--num_gpus", "2"], {"DS_ACCELERATOR": "cpu"})


def test_more_processes_than_devices_are_refused_before_the_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher, "device_files", lambda: ["/dev/nvidia0", "/dev/nvidia1"])
    with pytest.raises(InputError, match="2 processes need as many devices, but CUDA_VISIBLE_DEVICES is '3'; list"):
        launcher.on_this_machine(2, {"CUDA_VISIBLE_DEVICES": "3"})
