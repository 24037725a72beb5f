"""The shipped configurations of the InfoNCE kernels, for offline compilation."""

from __future__ import annotations

from typing import Any

import torch
from diffcse_kernels.triton import row_gradients, similarity, tiles

from tests.support.kernels.compile_offline import Case

TYPES = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32"}
VECTORS = ("q_inverse", "k_inverse", "scale_pointer", "bounds", "maxima", "sums", "positives", "shifts", "unit_pointer")
SIZES = ("num_rows", "num_columns", "width", "columns_a_split", "num_partners", "stride", "num_with_ids")
POSITIONS = ("positive", "hard_negative", "first_partner")
NO_MASKS = {"IDS": 0, "MULTIPLE": False, "further_positives": None, "gains": None, "pulls": None}
NO_MASKS |= dict.fromkeys(("query_ids", "column_ids", "excluded_rows", "thresholds"))


def cases(target: str) -> list[Case]:
    """Both similarity kernels for every dtype at a width of 768, and the row kernel for narrow and wide rows."""
    found = []
    for dtype, precision in precisions(target):
        pointer = TYPES[dtype]
        constants = tiles.constants(tiles.tiles(dtype, hopper=target != "sm_80"), 768, precision)
        constants |= NO_MASKS
        options = {name: constants.pop(name) for name in ("num_warps", "num_stages")}
        types = types_of_similarities(dtype)
        for kernel, own in (
            (similarity.row_maxima_kernel, {"WITH_SUMS": False}),
            (similarity.row_maxima_kernel, {"WITH_SUMS": True}),
            (similarity.exponentials_kernel, {}),
        ):
            found.append(
                case(f"{kernel.__name__} {pointer} {precision} {own}", kernel, types, constants | own, options)
            )
        for width in (768, 4096) if precision == "ieee" else ():
            shape = row_gradients.constants(width)
            constants_of_rows = {"PROJECT": True} | shape
            options_of_rows = {"num_warps": constants_of_rows.pop("num_warps")}
            rows = {"totals": "*fp32", "rows": pointer, "partners": pointer}
            rows |= dict.fromkeys(("inverse_norms", "factors", "partner_factors", "radials"), "*fp32")
            rows |= dict.fromkeys(SIZES + POSITIONS, "i32")
            name = f"row_gradients_kernel {pointer} width {width}"
            found.append(case(name, row_gradients.row_gradients_kernel, rows, constants_of_rows, options_of_rows))
    return found


def types_of_similarities(dtype: torch.dtype) -> dict[str, str]:
    """Those of all arguments of the kernels that compute similarities, but for masks."""
    rows = dict.fromkeys(("queries", "columns", "weights"), TYPES[dtype])
    return rows | {"bonus": "fp32"} | dict.fromkeys(VECTORS, "*fp32") | dict.fromkeys(SIZES + POSITIONS, "i32")


def precisions(target: str) -> list[tuple[torch.dtype, str]]:
    """How each dtype is multiplied there, float32 also as `torch.set_float32_matmul_precision("high")` has it."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    fast = tiles.precision(torch.float32, target)
    torch.set_float32_matmul_precision(before)
    plain = [(dtype, "ieee") for dtype in TYPES]
    return plain if fast == "ieee" else [*plain, (torch.float32, fast)]


def case(name: str, kernel: Any, types: dict[str, str], constants: dict[str, Any], options: dict[str, int]) -> Case:
    """Pointers, the width and the stride of strips are multiples of 16; batches and keys may have any number."""
    own = {argument: types[argument] for argument in kernel.arg_names if argument in types}
    constants = {name: value for name, value in constants.items() if name in kernel.arg_names and name not in own}
    divisible = tuple(
        argument for argument, kind in own.items() if kind.startswith("*") or argument in ("width", "stride")
    )
    return Case(name, kernel, own, constants, divisible, options)
