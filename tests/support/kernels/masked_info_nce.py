"""Cases of columns that do not count, or are further positives, for every implementation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffcse_kernels import NegativeSet
from torch import Tensor

from tests.support.kernels.eager_info_nce import random_rows

N, M, K, D = 13, 29, 17, 5
HUGE = 2**40  # ids that differ only beyond 32 bits are different


def ids(count: int, *width: int, seed: int = 0, of: int = 5) -> Tensor:
    """Few enough different ones for many to be equal."""
    number = torch.randint(of, (count, *width), generator=torch.Generator().manual_seed(seed))
    return number * HUGE


def masked_info_nce(function: Callable[..., Any]) -> Callable[..., Tensor]:
    """The function of the inputs below and a case: the losses, and beside them the logsumexp if it is asked for."""

    def of_case(**arguments: Any) -> Tensor:
        sets = arguments.pop("sets", ())
        negatives = [NegativeSet(arguments.pop(f"set{number}"), *one) for number, one in enumerate(sets)]
        result = function(negatives=negatives, **arguments)
        return torch.cat([part.reshape(-1) for part in result]) if isinstance(result, tuple) else result

    return of_case


def masked_inputs(
    options: dict[str, Any], rows: int = N, columns: int = M, others: int = K, dtype: torch.dtype = torch.float64
) -> dict[str, Tensor]:
    """What has a gradient."""
    shapes = {"queries": rows, "keys": columns}
    if "hard_negative_weight" in options:
        shapes["hard_negatives"] = others
    shapes |= {f"set{number}": others for number in range(len(options.get("sets", ())))}
    inputs = {name: random_rows(count, D, seed=seed + 1).to(dtype) for seed, (name, count) in enumerate(shapes.items())}
    precise = torch.promote_types(dtype, torch.float32)
    return {**inputs, "temperature": torch.tensor(options.get("temperature", 0.2), dtype=precise)}


IDS = {"query_ids": ids(N), "key_ids": ids(M, seed=1)}
WIDE_IDS = {"query_ids": ids(N, 3, of=20), "key_ids": ids(M, 3, seed=1, of=20)}
HARD = {"hard_negative_weight": 0.7, "hard_negative_offset": 2}
SETS: dict[str, Any] = {"sets": [(None, 0), (ids(K, seed=7), 3), (None, None)]}
CASES: dict[str, dict[str, Any]] = {
    "ids": IDS,
    "three ids": WIDE_IDS,
    "margin": {"margin": 0.1},
    "negative margin": {"margin": -0.3, "normalize": False, "temperature": 2.0},
    "ids and margin": {**IDS, "margin": 0.0, "reduction": "sum"},
    "hard negatives without ids": {**IDS, **HARD, "margin": 0.2},
    "hard negatives with ids": {**IDS, **HARD, "hard_negative_ids": ids(K, seed=3), "reduction": "none"},
    "sets": {**IDS, **SETS, "margin": 0.3},
    "sets and hard negatives": {**IDS, **HARD, **SETS},
    "sets without ids": {"sets": [(None, 1)]},
    "multiple positives": {**IDS, "multiple_positives": True},
    "multiple positives of all sets": {**IDS, **HARD, **SETS, "multiple_positives": True, "margin": 0.1},
    "multiple positives, none": {**WIDE_IDS, "multiple_positives": True, "reduction": "none", "normalize": False},
    "logsumexp": {"return_lse": True, "row_weights": torch.linspace(0, 2, N)},
    "logsumexp of what counts": {**IDS, **HARD, **SETS, "margin": 0.2, "return_lse": True, "reduction": "none"},
    "logsumexp, multiple positives": {**IDS, "multiple_positives": True, "return_lse": True},
}
