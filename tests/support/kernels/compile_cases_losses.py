"""The kernels of the sigmoid loss and of nested prefixes, for offline compilation."""

from __future__ import annotations

from diffcse_kernels.triton import matryoshka_info_nce, sigmoid_loss, tiles

from tests.support.kernels.compile_cases_info_nce import NO_MASKS, case, precisions, types_of_similarities
from tests.support.kernels.compile_offline import Case

IDS = {"query_ids": "*i64", "column_ids": "*i64"}
VECTORS = ("bias_pointer", "losses", "slopes", "moments", "pulls", "gains", "shares", "radials_q", "radials_k")


def cases(target: str) -> list[Case]:
    """With two ids a row, at a width of 768; the sigmoid loss of bfloat16 comes first."""
    kernels = (
        sigmoid_loss.slopes_kernel,
        matryoshka_info_nce.prefix_sums_kernel,
        matryoshka_info_nce.prefix_weights_kernel,
    )
    found = []
    for dtype, precision in precisions(target):
        constants = tiles.constants(tiles.tiles(dtype, hopper=False), 768, precision)
        constants |= NO_MASKS | {"IDS": 2, "WITH_WEIGHTS": True}
        options = {name: constants.pop(name) for name in ("num_warps", "num_stages")}
        types = types_of_similarities(dtype) | IDS | dict.fromkeys(VECTORS, "*fp32")
        types |= {"ends": "*i32", "num_prefixes": "i32"}
        for kernel in kernels:
            found.append(case(f"{kernel.__name__} {types['queries']} {precision}", kernel, types, constants, options))
    return found
