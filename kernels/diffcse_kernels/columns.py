"""The matrix of everything that a query is compared with: keys, hard negatives and further sets of negatives."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from .types import Ids, NegativeSet


class Columns(NamedTuple):
    """The joined columns: keys come first, and columns with ids come before columns without ids."""

    vectors: Tensor
    """[C, D]."""
    ids: Ids | None
    first_hard_negative: int | None
    """The column of the first hard negative; None if there are none."""
    excluded: list[int]
    """For each of these numbers, column `number + i` does not count in row `i`."""


def join_columns(
    queries: Tensor,
    keys: Tensor,
    hard_negatives: Tensor | None,
    negatives: Sequence[NegativeSet],
    query_ids: Tensor | None,
    key_ids: Tensor | None,
    hard_negative_ids: Tensor | None,
) -> Columns:
    """Check the sets and join them into the columns of the queries.

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
    # the sort is stable, so keys stay first
    ordered = sorted(sets.values(), key=lambda one: one.ids is None)
    names = sorted(sets, key=lambda name: sets[name].ids is None)
    ends = list(accumulate(len(one.vectors) for one in ordered))
    starts = dict(zip(names, [0, *ends], strict=False))
    excluded = [starts[name] + one.excluded_offset for name, one in sets.items() if one.excluded_offset is not None]
    vectors = keys if len(ordered) == 1 else torch.cat([one.vectors for one in ordered])
    return Columns(vectors, ids, starts.get("hard_negatives"), excluded)


def join_ids(queries: Tensor, query_ids: Tensor | None, sets: dict[str, NegativeSet]) -> Ids | None:
    """Join the ids of the rows and, in order, of the sets that have ids; None if nothing has ids.

    Args:
        queries: [N, D].
        query_ids: [N] or [N, C].
        sets: the sets by name, keys first.

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
    """Raise ValueError unless the margin is None or a finite number."""
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
    """The ids as a contiguous int64 [N, C]; raises ValueError if they do not fit these rows."""
    is_integer = not (ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool)
    if ids.dim() not in (1, 2) or len(ids) != len(rows) or not is_integer or 0 in ids.shape[1:]:
        raise ValueError(
            f"{name} must be integers [{len(rows)}] or [{len(rows)}, C], not {list(ids.shape)} of {ids.dtype}"
        )
    if ids.device != rows.device:
        raise ValueError(f"{name} must be on {rows.device}, where the rows are, not on {ids.device}")
    return (ids if ids.dim() == 2 else ids[:, None]).long().contiguous()
