from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from diffcse_kernels import crossovers, implementations, info_nce
from diffcse_kernels.implementations import resolve

CPU = torch.device("cpu")
GPU = torch.device("cuda", 0)
Arrange = Callable[..., list[torch.device]]


@pytest.fixture(autouse=True)
def no_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "0")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Arrange]:
    """A GPU of some compute capability on which the trial launch ends in some way; gives the list of its launches."""
    pytest.importorskip("triton")
    from diffcse_kernels.triton import trial

    def arrange(ends: bool | Exception = True, capability: tuple[int, int] = (9, 0)) -> list[torch.device]:
        launches: list[torch.device] = []

        def launch(device: torch.device) -> bool:
            launches.append(device)
            if isinstance(ends, Exception):
                raise ends
            return ends

        implementations._launch_once.cache_clear()
        implementations._warn_once.cache_clear()
        monkeypatch.setattr(trial, "launch", launch)
        monkeypatch.setattr(crossovers, "device_class", lambda device: "some GPU")
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
        return launches

    yield arrange
    implementations._launch_once.cache_clear()


def test_a_cpu_runs_the_reference_however_large_the_work() -> None:
    assert resolve("auto", "info_nce", 10**12, CPU, torch.float32) == "reference"


def test_a_gpu_runs_triton_from_the_measured_size_on(gpu: Arrange, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu()
    monkeypatch.setitem(crossovers.MEASURED, "some GPU", {"info_nce": 1000})
    assert resolve("auto", "info_nce", 999, GPU, torch.bfloat16) == "reference"
    assert resolve("auto", "info_nce", 1000, GPU, torch.bfloat16) == "triton"
    assert resolve("auto", "info_nce", 1000, GPU, torch.float64) == "reference"


def test_a_device_without_measurements_goes_by_the_conservative_rule(gpu: Arrange) -> None:
    gpu()
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


NO_COMPILER = RuntimeError("Failed to find C compiler. Please specify via CC environment variable")


def test_without_a_compiler_auto_warns_once_and_takes_the_reference(gpu: Arrange) -> None:
    launches = gpu(NO_COMPILER)
    with pytest.warns(RuntimeWarning, match="the reference runs") as warned:
        for function in crossovers.UNITS:
            assert resolve("auto", function, 10**12, GPU, torch.bfloat16) == "reference"
    assert len(warned) == 1
    assert "needs a C compiler and the headers of Python): Failed to find C compiler" in str(warned[0].message)
    assert launches == [GPU]
    with pytest.raises(ValueError, match=r"impl='triton' failed on cuda:0 \(it needs a C compiler"):
        resolve("triton", "info_nce", 1, GPU, torch.bfloat16)


def test_a_gpu_that_multiplies_wrongly_runs_the_reference(gpu: Arrange) -> None:
    gpu(False)
    with pytest.warns(RuntimeWarning, match="computes wrong numbers on cuda:0"):
        assert resolve("auto", "info_nce", 10**12, GPU, torch.bfloat16) == "reference"


def test_a_gpu_older_than_ampere_runs_the_reference_and_no_trial(gpu: Arrange) -> None:
    launches = gpu(capability=(7, 5))
    with pytest.warns(RuntimeWarning, match=r"needs a GPU of compute capability 8.0, and Tesla T4 has 7.5"):
        assert resolve("auto", "info_nce", 10**12, GPU, torch.float32) == "reference"
    assert not launches


def test_small_work_waits_for_no_trial(gpu: Arrange) -> None:
    launches = gpu(NO_COMPILER)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert resolve("auto", "info_nce", 1, GPU, torch.bfloat16) == "reference"
    assert not launches


def test_torch_compile_takes_the_answer_of_the_trial_and_does_not_trace_it(
    gpu: Arrange,
) -> None:
    launches = gpu(NO_COMPILER)

    def step(values: torch.Tensor) -> torch.Tensor:
        return values * (2 if implementations.failed_trial(GPU, warn=True) else 3)

    with pytest.warns(RuntimeWarning, match="Failed to find C compiler"):
        found = torch.compile(step, fullgraph=True, backend="eager")(torch.ones(2))
    assert found.tolist() == [2, 2]
    assert launches == [GPU]


@pytest.mark.skipif(torch.cuda.is_available(), reason="the interpreter stands in for a GPU")
def test_the_trial_launch_multiplies_rightly_and_leaves_nothing_in_the_cache(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    program = "import torch; from diffcse_kernels.triton import trial; print(trial.launch(torch.device('cpu')))"
    paths = os.pathsep.join(["kernels", *sys.path])
    environment = {**os.environ, "TRITON_INTERPRET": "1", "TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": paths}
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert result.stdout == "True\n", result.stderr
    assert not list(tmp_path.iterdir())
