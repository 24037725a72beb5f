"""The benchmark says what it measured, counts work and errors rightly, and survives what goes wrong."""

from __future__ import annotations

import ast
import io
import math
import os
import subprocess
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from diffcse_kernels import counter_uniform
from diffcse_kernels.benchmark import command, crossover, plot, record, suite
from diffcse_kernels.benchmark.crossover import NEVER, first_lasting_win
from diffcse_kernels.benchmark.info_nce import InfoNCE
from diffcse_kernels.benchmark.measure import Measured, Rates, measure
from diffcse_kernels.benchmark.suite import WORKLOADS, Plan, run
from diffcse_kernels.benchmark.workload import BOTH, FORWARD, Cell, Implementation, Outcome, Shape, Workload
from diffcse_kernels.crossovers import UNITS
from torch import Tensor
from torch.nn import functional as F

from tests.support.forks import start_server
from tests.support.kernels.eager_sigmoid_loss import eager_sigmoid_loss

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
FP32 = torch.float32
NAMES = [workload.name for workload in WORKLOADS]


def _plan(*only: str, sizes: tuple[int, ...], passes: tuple[str, ...] = (FORWARD,)) -> Plan:
    return Plan((InfoNCE(),), CPU, sizes, (8,), (FP32,), passes, only, 30, seconds=1e-3, longest=30)


def _error(arguments: str, capsys: pytest.CaptureFixture[str]) -> str:
    """What the command line says of a mistake: one line."""
    with pytest.raises(SystemExit) as stop:
        command.main(arguments.split())
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1
    return said


@pytest.fixture(autouse=True, scope="module")
def _forks() -> None:
    """The server that the benchmark's processes are forked from has to serve the tests of ranks, too."""
    start_server()


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """Output and folder of `python -m diffcse_kernels.benchmark all` on the CPU, with every eager implementation."""
    folder = tmp_path_factory.mktemp("run")
    arguments = (
        "all --device cpu --sizes 70 16 --widths 8 --seconds 0.001 --vocabulary 50 --only triton reference eager"
    )
    with redirect_stdout(io.StringIO()) as output:
        command.main([*arguments.split(), "--output", str(folder)])
    return output.getvalue(), folder


@pytest.mark.slow
def test_a_run_on_a_cpu_measures_the_reference_and_the_baselines_and_says_that_triton_needs_a_gpu(
    tiny_run: tuple[str, Path],
) -> None:
    output, folder = tiny_run
    rows = record.read(folder / "kernels.csv")
    assert "Triton needs a GPU" in output
    assert "left out: triton (needs a GPU)" in output
    assert {(row.kernel, row.implementation, row.passes, row.rows) for row in rows} == {
        (workload.name, name, passes, size)
        for workload in WORKLOADS
        for name in ("reference", "eager")
        for passes in workload.passes
        for size in (16, 70)
    }
    assert f"[{len(rows)}/{len(rows)}]" in output  # progress
    assert "info_nce, forward+backward, fp32, width 8" in output  # the table's title


@pytest.mark.slow
def test_every_row_states_times_rates_memory_errors_and_where_it_was_measured(tiny_run: tuple[str, Path]) -> None:
    _, folder = tiny_run
    assert record.COLUMNS[:8] == ("kernel", "implementation", "passes", "rows", "columns", "width", "dtype", "status")
    for row in record.read(folder / "kernels.csv"):
        assert row.status == "ok"
        assert 0 < row.p20_ms <= row.median_ms <= row.p80_ms
        assert 0 < row.gbps < row.copy_gbps / row.copy_fraction * 1.01
        assert (row.tflops is None) == (row.kernel == "replaced_token_bce")
        assert row.peak_mib >= 0
        assert (row.error is None) == (row.kernel == "sample_tokens" and row.implementation == "eager")
        assert (row.gradient_error is not None) == (row.passes == BOTH)
        assert (row.error or 0) < 1e-5 and (row.gradient_error or 0) < 1e-5
        assert row.torch == torch.__version__ and "thread" in row.device and row.date


@pytest.mark.slow
def test_times_and_memory_are_drawn_against_the_number_of_rows(tiny_run: tuple[str, Path], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    _, folder = tiny_run
    names = {f"{workload.name}_{passes}_fp32.png" for workload in WORKLOADS for passes in workload.passes}
    assert {path.name for path in folder.glob("*.png")} == names
    command.main(["plot", str(folder / "kernels.csv"), "--output", str(tmp_path / "again")])
    for name in names:
        assert (tmp_path / "again" / name).read_bytes().startswith(b"\x89PNG")


def test_every_implementation_is_drawn_with_a_style_of_its_own() -> None:
    drawn = {
        workload.name: [plot.STYLES[implementation.name] for implementation in workload.implementations]
        for workload in WORKLOADS
    }
    assert all(len(styles) == len(set(styles)) > 1 for styles in drawn.values()), drawn


def test_rows_are_on_disk_as_they_come_and_later_runs_add_theirs(tmp_path: Path) -> None:
    environment = record.Environment("cpu", "2", "", "", "2026-01-01")
    cell = Cell(InfoNCE(), InfoNCE.implementations[1], Shape(4, 4, 8), FP32, FORWARD)
    row = record.empty_row(cell, 'failed: a, b and "c"', environment)
    for count in (1, 2):
        record.append(tmp_path / "rows.csv", row)
        assert record.read(tmp_path / "rows.csv") == [row] * count


def test_the_figures_of_a_row_worked_by_hand() -> None:
    """1000 queries and keys of width 500, forward and backward in 4 ms, on a device of 10 TFLOP/s and 1 GB/s."""
    cell = Cell(InfoNCE(), InfoNCE.implementations[1], Shape(1000, 1000, 500), torch.bfloat16, BOTH)
    measured = Measured([3.0, 4.0, 5.0, 4.0, 4.0], peak_bytes=3 * 2**20, outcome=None)
    row = record.measured_row(cell, measured, Rates(1e13, 1e9), None, record.Environment("", "", "", "", ""))
    assert row.tflops == pytest.approx(6 * 1000 * 1000 * 500 / 4e-3 / 1e12)  # 6NMD = 3 GFLOP: 0.75 TFLOP/s
    assert row.matmul_fraction == pytest.approx(0.075)
    assert row.gbps == pytest.approx(4 * 1000 * 500 * 2 / 4e-3 / 1e9)  # q, k read and dq, dk written: 4 MB, 1 GB/s
    assert row.copy_fraction == pytest.approx(1)
    assert row.floor_ms == pytest.approx(4)  # 4 MB at 1 GB/s, more than 3 GFLOP at 10 TFLOP/s
    assert (row.p20_ms, row.median_ms, row.p80_ms, row.peak_mib) == (3.8, 4, 4.2, 3)


@pytest.mark.parametrize(
    ("workload", "flop", "traffic"),
    [
        (WORKLOADS[0], {FORWARD: 2 * 6 * 6 * 4, BOTH: 6 * 6 * 6 * 4}, {FORWARD: 12 * 4 * 2, BOTH: 24 * 4 * 2}),
        (WORKLOADS[1], {FORWARD: 2 * 6 * 4, BOTH: 6 * 6 * 4}, {FORWARD: 6 * 4 * 2, BOTH: 2 * 6 * 4 * 2}),
        (WORKLOADS[2], {FORWARD: 2 * 6 * 10 * 4}, {FORWARD: (6 + 10) * 4 * 2 + 10 * 2 + 6 * 16}),
        (WORKLOADS[3], {FORWARD: 2 * 6 * 6 * 4, BOTH: 6 * 6 * 6 * 4}, {FORWARD: 12 * 4 * 2, BOTH: 24 * 4 * 2}),
        (WORKLOADS[4], {FORWARD: 2 * 6 * 6 * 4, BOTH: 6 * 6 * 6 * 4}, {FORWARD: 12 * 4 * 2, BOTH: 24 * 4 * 2}),
    ],
    ids=NAMES,
)
def test_the_least_work_of_six_rows_of_width_four_in_bfloat16(
    workload: Workload, flop: dict[str, int], traffic: dict[str, int]
) -> None:
    shape = workload.shape(6, 4, vocabulary=10)
    for passes in workload.passes:
        assert workload.flop(shape, passes) == flop[passes]
        assert workload.traffic(shape, torch.bfloat16, passes) == traffic[passes]


def _found(workload: Workload, run: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> Outcome:
    leaves = [tensor.requires_grad_() for tensor in inputs[: workload.differentiable]]
    value = run(*inputs)
    return workload.outcome(value, torch.autograd.grad(value, leaves) if leaves else ())


@pytest.mark.parametrize("name", ["reference", "eager", "chunked", "broadcast"])
@pytest.mark.parametrize("rows", [7, 150])  # the gradients of all rows are compared, or of 64 of them
def test_info_nce_by_every_implementation_for_cpus_agrees_with_float64(name: str, rows: int) -> None:
    """fp32, max-norm relative: 2e-6 for the loss, 1e-5 for gradients."""
    workload = InfoNCE()
    implementation = next(each for each in workload.implementations if each.name == name)
    inputs = workload.inputs(Shape(rows, rows, 24), FP32, CPU)
    truth = workload.truth(*inputs)
    error, gradient_error = workload.errors(_found(workload, implementation.run, inputs), truth)
    assert error < 2e-6
    assert gradient_error < 1e-5


def _info_nce(queries: Tensor, keys: Tensor, temperature: float = 0.05) -> Tensor:
    return F.cross_entropy(F.normalize(queries) @ F.normalize(keys).T / temperature, torch.arange(len(queries)))


def _token_bce(hidden: Tensor, weight: Tensor, bias: Tensor, original: Tensor, edited: Tensor, mask: Tensor) -> Tensor:
    logits, labels = (hidden @ weight + bias)[mask], (original != edited)[mask].double()
    return F.binary_cross_entropy_with_logits(logits, labels, reduction="sum")


def _sampled(hidden: Tensor, embedding: Tensor, bias: Tensor, positions: Tensor) -> Tensor:
    cumulative = (hidden @ embedding.T + bias).softmax(dim=1).cumsum(dim=1)
    return (cumulative <= counter_uniform(0, positions)[:, None]).sum(dim=1)


@pytest.mark.parametrize(
    ("workload", "formula"),
    zip(
        WORKLOADS,
        (_info_nce, _token_bce, _sampled, eager_sigmoid_loss, partial(_info_nce, temperature=0.01)),
        strict=True,
    ),
    ids=NAMES,
)
def test_the_truth_is_the_formula_in_float64(workload: Workload, formula: Callable[..., Tensor]) -> None:
    """1e-12; and the comparison sees a result that is wrong by 1e-6, or another token."""
    inputs = workload.inputs(workload.shape(150, 24, vocabulary=40), torch.float64, CPU)
    truth, found = workload.truth(*inputs), _found(workload, formula, inputs)
    assert max(filter(None, workload.errors(found, truth)), default=0) < 1e-12
    if workload.differentiable:
        wrong = Outcome(found.value, tuple(gradient * (1 + 1e-6) for gradient in found.gradients))
        assert workload.errors(wrong, truth)[1] == pytest.approx(1e-6, rel=1e-3)
    else:
        assert workload.errors(Outcome(np.append(found.value[1:], -1), ()), truth)[0] > 0.5


@pytest.mark.slow
def test_memory_is_what_the_call_took_beyond_its_inputs() -> None:
    """Eager holds the logits and their softmax, 64 MiB each, at least; the reference two blocks of 32 MiB."""
    shape = Shape(4096, 4096, 8)
    eager, reference = (
        measure(Cell(InfoNCE(), implementation, shape, FP32, FORWARD), CPU, 1e-3).peak_bytes / 2**20
        for name in ("eager", "reference")
        for implementation in InfoNCE.implementations
        if implementation.name == name
    )
    assert 128 <= eager < 256
    assert 32 <= reference < 96


def test_an_implementation_that_fails_becomes_a_row_that_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = Implementation("broken", math.sqrt)
    monkeypatch.setattr(InfoNCE, "implementations", (broken, *InfoNCE.implementations))
    rows = [row for _, row in run(_plan("broken", "eager", sizes=(8,)))]
    assert [row.implementation for row in rows] == ["broken", "eager"]
    assert rows[0].status.startswith("failed: TypeError: ") and rows[0].median_ms is None
    assert rows[1].status == "ok"


def test_what_runs_out_of_memory_says_so_and_is_spared_larger_sizes() -> None:
    rows = [row for _, row in run(_plan("broadcast", sizes=(2**20, 2**21)))]  # 35 TB
    assert rows[0].status.startswith("out of memory")
    assert rows[1] is None


def test_what_is_predicted_to_take_too_long_is_not_started(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = Measured([200.0], None, Outcome(np.zeros(()), ()))
    monkeypatch.setattr(suite, "measure", lambda *_: slow)
    monkeypatch.setattr(suite, "measure_rates", lambda *_: Rates(1e12, 1e9))
    rows = [row for _, row in run(replace(_plan("eager", sizes=(16, 32, 512)), longest=10))]
    assert [row.status for row in rows] == ["ok", "ok", "skipped: a call would take about 51 s"]  # 0.2 s x 16 x 16


def test_a_crossover_is_where_triton_begins_to_win_for_good() -> None:
    works, reference = [1, 2, 4, 8], [5.0, 5.0, 5.0, 5.0]
    assert first_lasting_win(works, [4.0, 6.0, 4.0, 3.0], reference) == 4
    assert first_lasting_win(works, [4.0, 4.0, 4.0, 4.0], reference) == 1
    assert first_lasting_win(works, [4.0, 4.0, 4.0, 6.0], reference) == NEVER


def test_crossovers_prints_a_row_to_paste(monkeypatch: pytest.MonkeyPatch) -> None:
    """With made-up times: Triton's grow from 1 ms with the root of the rows, the reference's with the rows."""
    said: list[str] = []

    def made_up(cell: Cell, *_: object) -> Measured:
        rows = cell.shape.rows
        return Measured(
            [1 + rows**0.5 if cell.implementation.name == "triton" else rows], None, Outcome(np.empty(0), ())
        )

    monkeypatch.setattr(crossover, "measure", made_up)
    monkeypatch.setattr(crossover, "device_class", lambda _: "sm_90")
    row = ast.literal_eval("{" + crossover.crossovers(CPU, 1, said.append) + "}")
    smallest = {
        "info_nce": 32 * 32,
        "replaced_token_bce": 64 * 768,
        "sample_tokens": 4 * 30_522,
        "sigmoid_loss": 32 * 32,
    }
    assert row == {"sm_90": smallest}
    assert set(row["sm_90"]) == set(UNITS)
    assert said[0].startswith("info_nce at 1,024 queries x keys: triton 6.657 ms, reference 32.000 ms")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("info-nce --only egaer", "did you mean eager?"),
        ("info-nce --only triton --device cpu", "nothing to measure: triton needs a GPU"),
        ("info-nce --sizes 0", "'0' is not a positive integer"),
        ("info-nce --dtypes fp8", "choose from"),
        ("info-nce --seconds soon", "'soon' is not a positive number"),
        ("sample-tokens --passes forward+backward", "sample_tokens has no backward pass"),
        ("plot nowhere.csv", "nowhere.csv does not exist"),
        ("everything", "choose from"),
        ("", "COMMAND"),
    ],
)
def test_a_mistake_is_one_sentence(arguments: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert said in _error(arguments, capsys)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("arguments", ["crossovers", "info-nce --device cuda"])
def test_what_needs_a_gpu_says_so(arguments: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "torch finds" in _error(arguments, capsys)


def test_a_file_that_is_not_the_benchmarks_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "kernels.csv").write_text("name,score\n")
    assert "its columns differ" in _error(f"info-nce --output {tmp_path}", capsys)
    assert (tmp_path / "kernels.csv").read_text() == "name,score\n"


@pytest.mark.slow
def test_a_picture_that_was_not_drawn_here_is_left_alone(
    tiny_run: tuple[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "info_nce_forward_fp32.png").write_bytes(b"\x89PNG, of a camera")
    for arguments in ("info-nce", f"plot {tiny_run[1] / 'kernels.csv'}"):
        assert "was not drawn by this program" in _error(f"{arguments} --output {tmp_path}", capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["info_nce_forward_fp32.png"]


def test_the_slurm_script_runs_everything_unless_told_what(tmp_path: Path) -> None:
    script = ROOT / "slurm" / "benchmark.sbatch"
    srun = tmp_path / "srun"
    srun.write_text('#!/bin/sh\nwhile [ "$1" != python ]; do shift; done\necho "$@"\n')
    srun.chmod(0o755)
    place = {"PYTHON": "python", "DIFFCSE_HOME": str(ROOT), "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    for arguments in ((), ("info-nce", "--dtypes", "bf16")):
        done = subprocess.run(["bash", str(script), *arguments], env=os.environ | place, capture_output=True, text=True)
        assert done.stdout.split() == ["python", "-m", "diffcse_kernels.benchmark", *(arguments or ["all"])]
