"""What every query is compared with, in one matrix: keys, hard negatives and further sets of negatives."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from .types import Ids, NegativeSet


class Columns(NamedTuple):
    """Keys come first, and columns with ids before those without."""

    vectors: Tensor
    """[C, D]."""
    ids: Ids | None
    first_hard_negative: int | None
    """The number of the first of them."""
    excluded: list[int]
    """Column `number + i` does not count in row `i`, for each of the numbers."""


def join_columns(
    queries: Tensor,
    keys: Tensor,
    hard_negatives: Tensor | None,
    negatives: Sequence[NegativeSet],
    query_ids: Tensor | None,
    key_ids: Tensor | None,
    hard_negative_ids: Tensor | None,
) -> Columns:
    """The columns of the queries, checked.

    Raises:
        ValueError: ids or sets that do not fit the rows or each other.
    """
    if hard_negative_ids is not None and hard_negatives is None:
        raise ValueError("hard_negative_ids need hard_negatives, whose ids they are")
    sets = {"keys": NegativeSet(keys, key_ids)}
    if hard_negatives is not None:
        sets["hard_negatives"] = NegativeSet(hard_negatives, hard_negative_ids)
    sets |= {f"negatives[{number}]": one for number, one in enumerate(negatives)}
    for name, one in sets.items():
        _check_set(name, one, queries)
    ids = join_ids(queries, query_ids, sets)
    # stable: keys stay the first
    ordered = sorted(sets.values(), key=lambda one: one.ids is None)
    names = sorted(sets, key=lambda name: sets[name].ids is None)
    ends = list(accumulate(len(one.vectors) for one in ordered))
    starts = dict(zip(names, [0, *ends], strict=False))
    excluded = [starts[name] + one.excluded_offset for name, one in sets.items() if one.excluded_offset is not None]
    vectors = keys if len(ordered) == 1 else torch.cat([one.vectors for one in ordered])
    return Columns(vectors, ids, starts.get("hard_negatives"), excluded)


def join_ids(queries: Tensor, query_ids: Tensor | None, sets: dict[str, NegativeSet]) -> Ids | None:
    """The ids of the rows and, in their order, of the sets that have some, keys first; None if there are none.

    Args:
        queries: [N, D].
        query_ids: [N] or [N, C].
        sets: by name.

    Raises:
        ValueError: ids that do not fit the rows or each other.
    """
    has_ids = [one.ids is not None for one in sets.values()]
    if query_ids is None and not any(has_ids):
        return None
    if query_ids is None or not has_ids[0]:
        raise ValueError("ids of any rows need query_ids and key_ids both, because they are compared with each other")
    of_queries = _prepared("query_ids", query_ids, queries)
    of_columns = [
        _prepared(f"the ids of {name}", one.ids, one.vectors) for name, one in sets.items() if one.ids is not None
    ]
    widths = {ids.shape[1] for ids in (of_queries, *of_columns)}
    if len(widths) > 1:
        raise ValueError(f"query_ids and the ids of all columns must have the same number C, not {sorted(widths)}")
    return Ids(of_queries, of_columns[0] if len(of_columns) == 1 else torch.cat(of_columns))


def check_margin(margin: float | None) -> None:
    """ValueError unless it is None or a finite number."""
    if margin is not None and not math.isfinite(margin):
        raise ValueError(f"margin must be a finite number or None, not {margin}")


def _check_set(name: str, one: NegativeSet, queries: Tensor) -> None:
    shape, width = list(one.vectors.shape), queries.shape[1]
    if len(shape) != 2 or shape[1] != width or not one.vectors.is_floating_point():
        raise ValueError(f"{name} must be a floating-point [K, {width}], not {shape} of {one.vectors.dtype}")
    offset = one.excluded_offset
    if offset is not None and not 0 <= offset <= len(one.vectors) - len(queries):
        raise ValueError(
            f"{name} has no vector for each of {len(queries)} queries to leave out: there are {len(one.vectors)} and "
            f"excluded_offset={offset}"
        )


def _prepared(name: str, ids: Tensor, rows: Tensor) -> Tensor:
    """The ids as a contiguous int64 [N, C]; ValueError if they are no ids of these rows."""
    is_integer = not (ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool)
    if ids.dim() not in (1, 2) or len(ids) != len(rows) or not is_integer or 0 in ids.shape[1:]:
        raise ValueError(
            f"{name} must be integers [{len(rows)}] or [{len(rows)}, C], not {list(ids.shape)} of {ids.dtype}"
        )
    if ids.device != rows.device:
        raise ValueError(f"{name} must be on {rows.device}, where the rows are, not on {ids.device}")
    return (ids if ids.dim() == 2 else ids[:, None]).long().contiguous()
