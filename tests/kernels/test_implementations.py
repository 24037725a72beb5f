from __future__ import annotations

import pytest
import torch
from diffcse_kernels import crossovers, implementations, info_nce
from diffcse_kernels.implementations import resolve

CPU = torch.device("cpu")
GPU = torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def no_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "0")


def test_a_cpu_runs_the_reference_however_large_the_work() -> None:
    assert resolve("auto", "info_nce", 10**12, CPU, torch.float32) == "reference"


def test_a_gpu_runs_triton_from_the_measured_size_on(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    monkeypatch.setattr(crossovers, "device_class", lambda device: "sm_90")
    monkeypatch.setitem(crossovers.MEASURED, "sm_90", {"info_nce": 1000})
    assert resolve("auto", "info_nce", 999, GPU, torch.bfloat16) == "reference"
    assert resolve("auto", "info_nce", 1000, GPU, torch.bfloat16) == "triton"
    assert resolve("auto", "info_nce", 1000, GPU, torch.float64) == "reference"


def test_a_device_without_measurements_goes_by_the_conservative_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    monkeypatch.setattr(crossovers, "device_class", lambda device: "sm_00")
    for function, size in crossovers.CONSERVATIVE.items():
        assert resolve("auto", function, size - 1, GPU, torch.bfloat16) == "reference"
        assert resolve("auto", function, size, GPU, torch.bfloat16) == "triton"
    assert crossovers.UNITS.keys() == crossovers.CONSERVATIVE.keys()


def test_triton_where_it_cannot_run_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = torch.randn(4, 3)
    with pytest.raises(ValueError, match="impl must be one of 'auto', 'triton', 'reference', not 'cuda'"):
        info_nce(rows, rows, impl="cuda")
    with pytest.raises(ValueError, match="needs a GPU, and the inputs are on 'cpu'"):
        info_nce(rows, rows, impl="triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(ValueError, match="does not compute in float64"):
        info_nce(rows.double(), rows.double(), impl="triton")
    monkeypatch.setattr(implementations.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="needs the package triton"):
        info_nce(rows, rows, impl="triton")
