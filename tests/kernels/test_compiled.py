"""The Triton kernels compile for GPUs that are not here: no spills, tensor cores where there are products.

Registers differ from one triton to the next, so the limits hold for the release that CUDA builds of torch 2.11 bring
(3.6); with another one the kernels only have to compile.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import metadata
from typing import Any

import pytest

pytest.importorskip("triton")

KIBIBYTE = 1024
SHARED_LIMITS = {
    "sm_80": 163 * KIBIBYTE,
    "sm_90": 227 * KIBIBYTE,
    "gfx942": 64 * KIBIBYTE,
    "gfx950": 160 * KIBIBYTE,
}  # of one block
TENSOR_CORES = {"sm_80": "mma", "sm_90": "wgmma"}
WITH_PRODUCTS = ("row_maxima_kernel", "exponentials_kernel", "weigh_slices_kernel")
OF_INFO_NCE = ("row_maxima_kernel", "exponentials_kernel", "row_gradients_kernel")


@pytest.mark.parametrize(
    "target", ["sm_90", *(pytest.param(name, marks=pytest.mark.slow) for name in ("sm_80", "gfx942", "gfx950"))]
)
def test_shipped_configurations_compile_without_spills(target: str) -> None:
    # in a process of its own, because this one may have Triton's interpreter in place of the compiler
    command = [sys.executable, "-m", "tests.support.kernels.compile_offline", target]
    environment = {**os.environ, "TRITON_INTERPRET": "0", "PYTHONPATH": os.pathsep.join([".", "kernels", *sys.path])}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr[-3000:]
    rows: list[dict[str, Any]] = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(rows) >= 20
    for row in rows:
        assert row["shared"] <= SHARED_LIMITS[target], row
        if row["case"].startswith(OF_INFO_NCE):  # ragged batches do not compile anew
            assert set(row["specialized"]) <= {"width", "stride"}, row
        if target in TENSOR_CORES and metadata.version("triton").startswith("3.6."):
            assert row["stack"] == 0, row
    for row in rows:
        if target in TENSOR_CORES and row["case"].startswith(WITH_PRODUCTS) and "fp32" not in row["case"]:
            assert row[TENSOR_CORES[target]] > 0, row
        # a whole tile of weights leaves in stores of 16 bytes, though the number of columns is no multiple of anything
        if target in TENSOR_CORES and row["case"].startswith("exponentials_kernel"):
            assert row["wide_stores"] >= 4, row
