"""The Triton kernels compile for GPUs that are not here, to what makes them fast: no spills, tensor cores, operands
copied while the products before them are made, wide stores, tiles that are large enough to be worth their operands.

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
OF_PREFIXES = ("prefix_sums_kernel", "prefix_weights_kernel")
WITH_PRODUCTS = ("row_maxima_kernel", "exponentials_kernel", "slopes_kernel", "weigh_slices_kernel", *OF_PREFIXES)
OF_INFO_NCE = ("row_maxima_kernel", "exponentials_kernel", "row_gradients_kernel", "slopes_kernel", *OF_PREFIXES)
OF_TILES = ("row_maxima_kernel", "exponentials_kernel")
THREADS = 256
# of a tile's product for each byte of its operands: 128 x 128 half-precision numbers, or 128 x 64 before Hopper
FLOP_A_BYTE = {"sm_80": 42.0, "sm_90": 64.0, "gfx942": 64.0, "gfx950": 64.0}
FLOP_A_BYTE_OF_FLOAT32 = 16.0
EPILOGUE = 30  # instructions of PTX for each similarity, after the product; there were 24.4 on sm_90, 28.3 on sm_80
EPILOGUE_WITH_MASKS = 56  # 55.2 on sm_90, of three ids a row; 54.8 of one with several positives


@pytest.mark.parametrize(
    ("target", "masks"),
    [
        ("sm_90", []),
        *(pytest.param(name, [], marks=pytest.mark.slow) for name in ("sm_80", "gfx942", "gfx950")),
        *(pytest.param(name, ["masks"], marks=pytest.mark.slow) for name in ("sm_90", "sm_80", "gfx942", "gfx950")),
    ],
)
def test_shipped_configurations_compile_without_spills(target: str, masks: list[str]) -> None:
    # in a process of its own, because this one may have Triton's interpreter in place of the compiler
    command = [sys.executable, "-m", "tests.support.kernels.compile_offline", target, *masks]
    environment = {**os.environ, "TRITON_INTERPRET": "0", "PYTHONPATH": os.pathsep.join([".", "kernels", *sys.path])}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr[-3000:]
    rows: list[dict[str, Any]] = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(rows) >= 18
    for row in rows:
        assert row["shared"] <= SHARED_LIMITS[target], row
        if row["case"].startswith(OF_INFO_NCE):
            assert set(row["specialized"]) <= {"width", "stride"}, row  # ragged batches do not compile anew
            # 2^31 elements are not many; a split begins at a column, of which there are fewer
            assert {factors.rpartition("%")[2] for factors in row["narrow"]} <= {"columns_a_split"}, row
        if target in TENSOR_CORES and metadata.version("triton").startswith("3.6."):
            assert row["stack"] == 0, row
        if target in TENSOR_CORES and row["case"].startswith(WITH_PRODUCTS) and "fp32" not in row["case"]:
            assert row[TENSOR_CORES[target]] > 0, row
        # a whole tile of weights leaves in stores of 16 bytes, though the number of columns is no multiple of anything
        if target in TENSOR_CORES and row["case"].startswith(
            ("exponentials_kernel", "slopes_kernel", "prefix_weights")
        ):
            assert row["wide_stores"] >= 4, row
        if row["case"].startswith(OF_TILES):
            check_a_tile(target, row)


def check_a_tile(target: str, row: dict[str, Any]) -> None:
    """What a program does for a tile of similarities."""
    height, width, depth = row["tile"]
    itemsize = 4 if "fp32" in row["case"] else 2
    wanted = FLOP_A_BYTE_OF_FLOAT32 if itemsize == 4 else FLOP_A_BYTE[target]
    masked = "'IDS'" in row["case"]
    if row["case"].startswith("row_maxima_kernel") and masked:
        wanted *= 0.6  # `tiles_with_masks` halves the columns
    assert 2 * height * width / (itemsize * (height + width)) >= wanted, row
    if target not in TENSOR_CORES:
        return
    copies = (height + width) * depth * itemsize // 16 // THREADS  # of a thread, for one step along the width
    assert row["async_copies"] >= 2 * copies, row  # before the loop, and in it for a step that is still to come
    if row["case"].startswith("exponentials_kernel"):
        if not masked:  # two programs share a processor, of float32
            assert row["registers"] * THREADS * itemsize // 2 <= 65_536, row
        if itemsize == 2:  # float32 products are such instructions themselves
            most = EPILOGUE_WITH_MASKS if masked else EPILOGUE
            assert row["after_products"] * THREADS / (height * width) <= most, row
