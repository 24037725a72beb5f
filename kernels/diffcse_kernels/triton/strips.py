"""How many rows of exponentials exist at once."""

from __future__ import annotations

import torch
import triton

WORKSPACE_BYTES = 768 * 2**20  # 5632 rows of bfloat16 for 65,536 columns
PRODUCT_TILE = (
    128,
    256,
)  # rows and columns of a result that one processor of a GPU makes at a time, in vendors' libraries


def strip_rows(rows: int, columns: int, width: int, itemsize: int, tile_rows: int, processors: int) -> int:
    """How high a strip of exponentials is.

    A strip takes at most `WORKSPACE_BYTES`, or as many bytes as the float32 gradients of the columns if those are more:
    every strip reads and writes them once, and should have the work to hide that. Where one strip does not hold all
    rows, it gives up to half of its height so that the last wave of the product that makes its rows' gradients leaves
    few processors idle.

    Args:
        rows: of the similarities.
        columns: of the similarities.
        width: of the embeddings.
        itemsize: bytes of an exponential.
        tile_rows: a strip is a multiple of it.
        processors: of the device; 1 where waves do not matter.

    Example:
        >>> strip_rows(65_536, 65_536, 768, itemsize=2, tile_rows=128, processors=132)  # 44 x 3 tiles
        5632
    """
    budget = max(WORKSPACE_BYTES, 4 * columns * width)
    most = max(1, budget // (stride(columns) * itemsize * tile_rows))
    if most * tile_rows >= rows:
        return most * tile_rows
    fewest = max(most // 2, most - processors) + 1  # a multiple of the processors is among the last so many
    return (
        max(range(fewest, most + 1), key=lambda tiles: (_busy(tiles * tile_rows, width, processors), tiles)) * tile_rows
    )


def _busy(height: int, width: int, processors: int) -> float:
    """Share of the processors' time that [height, width] results take, in waves of tiles."""
    tiles = triton.cdiv(height, PRODUCT_TILE[0]) * triton.cdiv(width, PRODUCT_TILE[1])
    return tiles / (triton.cdiv(tiles, processors) * processors)


def stride(columns: int) -> int:
    """From one row of a strip to the next: all begin where 16 bytes can be stored and loaded at once."""
    return triton.cdiv(columns, 16) * 16


def processors_of(device: torch.device) -> int:
    """The interpreter is one."""
    return 1 if device.type == "cpu" else int(torch.cuda.get_device_properties(device).multi_processor_count)
