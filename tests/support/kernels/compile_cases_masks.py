"""The kernels of InfoNCE with masks, for offline compilation."""

from __future__ import annotations

from diffcse_kernels.triton import own_logits, similarity, tiles

from tests.support.kernels.compile_cases_info_nce import NO_MASKS, case, precisions, types_of_similarities
from tests.support.kernels.compile_offline import Case

OF_MASKS = {"query_ids": "*i64", "column_ids": "*i64", "excluded_rows": "*i32", "thresholds": "*fp32"}
OF_POSITIVES = {"further_positives": "*fp32", "gains": "*fp32", "pulls": "*fp32"}


def cases(target: str) -> list[Case]:
    """Ids, or several positives, with thresholds and excluded rows; exponentials with the trainer's ids come first."""
    kernels = (
        (similarity.exponentials_kernel, {"IDS": 3}),
        (similarity.exponentials_kernel, {"IDS": 2}),
        (similarity.exponentials_kernel, {"IDS": 1, "MULTIPLE": True}),
        (similarity.row_maxima_kernel, {"WITH_SUMS": False, "IDS": 2}),
        (similarity.row_maxima_kernel, {"WITH_SUMS": True, "IDS": 2}),
        (similarity.row_maxima_kernel, {"WITH_SUMS": False, "IDS": 3}),
        (similarity.row_maxima_kernel, {"WITH_SUMS": True, "IDS": 3}),
        (similarity.row_maxima_kernel, {"WITH_SUMS": True, "IDS": 1, "MULTIPLE": True}),
        (own_logits.own_logits_kernel, {}),
    )
    found = []
    for dtype, precision in precisions(target):
        for kernel, own in kernels:
            shape = tiles.tiles(dtype, hopper=target != "sm_80")
            if kernel is similarity.row_maxima_kernel:
                shape = tiles.tiles_with_masks(shape)
            constants = tiles.constants(shape, 768, precision) | NO_MASKS | own
            options = {name: constants.pop(name) for name in ("num_warps", "num_stages")}
            types = types_of_similarities(dtype) | OF_MASKS | (OF_POSITIVES if own.get("MULTIPLE") else {})
            name = f"{kernel.__name__} {types['queries']} {precision} {own}"
            found.append(case(name, kernel, types | {"out": "*fp32"}, constants, options))
    return found
