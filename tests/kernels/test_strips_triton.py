"""How high strips are is arithmetic, for devices that are not here."""

from __future__ import annotations

from itertools import product

import pytest

pytest.importorskip("triton")
from diffcse_kernels.triton.strips import WORKSPACE_BYTES, strip_rows

H200, B200, A100 = 132, 148, 108  # processors


@pytest.mark.parametrize(("itemsize", "tile"), [(2, 128), (4, 64)])
def test_a_strip_is_some_tiles_and_fits_the_budget(itemsize: int, tile: int) -> None:
    for columns, width, processors in product((1, 1000, 65_536, 1_000_001), (384, 768, 4096), (1, A100, H200, B200)):
        height = strip_rows(2**40, columns, width, itemsize, tile, processors)
        assert height > 0
        assert height % tile == 0
        assert height * columns * itemsize <= max(WORKSPACE_BYTES, 4 * columns * width)


def test_the_budget_grows_with_the_columns_gradients() -> None:
    # a strip of [h, M] bfloat16 reads and writes 8 M D bytes of gradients, reads itself, and does 2 h M D FLOP: with
    # h = 2 D that is D / 3 FLOP a byte, more than the 184 that an H200 does (790 TFLOP/s) while it moves one (4.3 TB/s)
    for columns in (2**20, 2**22, 2**24):
        assert strip_rows(columns, columns, 768, 2, 128, 1) == 2 * 768


@pytest.mark.parametrize("processors", [A100, H200, B200])
@pytest.mark.parametrize("width", [768, 1024, 4096])  # of narrower rows there is no whole wave
def test_few_processors_are_idle_in_the_last_wave_of_the_product(width: int, processors: int) -> None:
    height = strip_rows(65_536, 65_536, width, 2, 128, processors)
    tiles = height // 128 * -(-width // 256)
    assert tiles / (-(-tiles // processors) * processors) > 0.95
    assert height > strip_rows(65_536, 65_536, width, 2, 128, 1) // 2


def test_rows_that_fit_make_one_strip() -> None:
    assert strip_rows(5000, 50_000, 768, 2, 128, H200) >= 5000
