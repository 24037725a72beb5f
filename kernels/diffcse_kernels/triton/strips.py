"""The height of a strip: how many rows of exponentials exist at once."""

from __future__ import annotations

import torch
import triton

WORKSPACE_BYTES = 768 * 2**20  # 5632 rows of bfloat16 for 65,536 columns
PRODUCT_TILE = (
    128,
    256,
)  # rows and columns of the tile of a result that one GPU processor computes at a time, in vendors' libraries


def strip_rows(rows: int, columns: int, width: int, itemsize: int, tile_rows: int, processors: int) -> int:
    """The number of rows in a strip of exponentials.

    A strip takes at most `WORKSPACE_BYTES`, or as many bytes as the float32 gradients of the columns if that is more.
    Every strip reads and writes these gradients once, and needs enough work to hide this. If one strip cannot hold all
    rows, its height may shrink by up to half. The product for its rows' gradients then leaves few processors idle in
    its last wave.

    Args:
        rows: number of rows of the similarities.
        columns: number of columns of the similarities.
        width: width of the embeddings.
        itemsize: bytes of an exponential.
        tile_rows: the height is a multiple of this.
        processors: number of the device's processors; 1 if waves do not matter.

    Example:
        >>> strip_rows(65_536, 65_536, 768, itemsize=2, tile_rows=128, processors=132)  # 44 x 3 tiles
        5632
    """
    budget = max(WORKSPACE_BYTES, 4 * columns * width)
    most = max(1, budget // (stride(columns) * itemsize * tile_rows))
    if most * tile_rows >= rows:
        return most * tile_rows
    fewest = max(most // 2, most - processors) + 1  # any `processors` consecutive heights include a multiple of it
    return (
        max(range(fewest, most + 1), key=lambda tiles: (_busy(tiles * tile_rows, width, processors), tiles)) * tile_rows
    )


def _busy(height: int, width: int, processors: int) -> float:
    """The share of the processors that work on a [height, width] result, averaged over its waves of tiles."""
    tiles = triton.cdiv(height, PRODUCT_TILE[0]) * triton.cdiv(width, PRODUCT_TILE[1])
    return tiles / (triton.cdiv(tiles, processors) * processors)


def stride(columns: int) -> int:
    """Elements from one row of a strip to the next; every row begins where 16-byte loads and stores are possible."""
    return triton.cdiv(columns, 16) * 16


def processors_of(device: torch.device) -> int:
    """The number of multiprocessors; Triton's interpreter on a CPU counts as one."""
    return 1 if device.type == "cpu" else int(torch.cuda.get_device_properties(device).multi_processor_count)
