"""Masks: which columns of a tile do not count in which rows; no mask is larger than the tile."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..types import Ids, Options

MASK_SIZES = ["num_with_ids"]  # kernels are not specialised for this number


class Masks(NamedTuple):
    """Everything that excludes columns. A field that is None excludes nothing and costs nothing in the kernels."""

    query_ids: Tensor | None = None
    """[N, C] int64."""
    column_ids: Tensor | None = None
    """[I, C] int64, for the first I columns."""
    excluded_rows: Tensor | None = None
    """[columns] int32: the one row in which a column does not count; a number that is no row excludes nothing."""
    thresholds: Tensor | None = None
    """[N] float32: columns with a larger logit, not counting the bonus, do not count."""
    multiple_positives: bool = False
    """If True, columns that share an id with a row are positives of it, and no threshold excludes them."""

    @classmethod
    def of(cls, ids: Ids | None, options: Options, columns: int, rows: Tensor) -> Masks:
        """The masks of some rows, without the thresholds."""
        excluded_rows = None
        if options.excluded:
            excluded_rows = torch.full((columns,), -1, dtype=torch.int32, device=rows.device)
            every = torch.arange(len(rows), dtype=torch.int32, device=rows.device)
            for first in options.excluded:
                excluded_rows[first : first + len(rows)] = every
        return cls.of_ids(ids)._replace(excluded_rows=excluded_rows, multiple_positives=options.multiple_positives)

    @classmethod
    def of_ids(cls, ids: Ids | None) -> Masks:
        """Masks that exclude the columns that share an id with a row."""
        return cls() if ids is None else cls(ids.queries, ids.columns)

    def strip(self, rows: slice) -> Masks:
        """The masks of a slice of the rows, renumbered from 0."""
        return self._replace(
            query_ids=None if self.query_ids is None else self.query_ids[rows],
            excluded_rows=None if self.excluded_rows is None else self.excluded_rows - rows.start,
            thresholds=None if self.thresholds is None else self.thresholds[rows],
        )

    def tensors(self) -> tuple[Tensor | None, ...]:
        """The tensor arguments of the kernels that compute similarities."""
        return self.query_ids, self.column_ids, self.excluded_rows, self.thresholds

    def number(self) -> int:
        """The integer argument of these kernels: how many columns have ids."""
        return 0 if self.column_ids is None else len(self.column_ids)

    def constants(self) -> dict[str, int | bool]:
        """The compile-time arguments of these kernels."""
        return {"IDS": 0 if self.query_ids is None else self.query_ids.shape[1], "MULTIPLE": self.multiple_positives}


@triton.jit
def leave_out(
    logits, row, column, hard_negative, bonus, query_ids, column_ids, excluded_rows, thresholds,
    num_rows, num_columns, num_with_ids, IDS: tl.constexpr, MULTIPLE: tl.constexpr,
):  # fmt: skip
    """A tile of logits with -inf where a column does not count in a row, and, if MULTIPLE, whether both share an id."""
    if thresholds is not None:
        threshold = tl.load(thresholds + row, mask=row < num_rows, other=0.0)
        of_own = tl.where(hard_negative >= 0, bonus, 0.0)
        above = logits > threshold[:, None] + tl.where(column[None, :] == hard_negative + row[:, None], of_own, 0.0)
        counting = tl.where(above, float("-inf"), logits)
    else:
        counting = logits
    alike = tl.zeros(logits.shape, tl.int1)
    for number in tl.static_range(IDS):
        of_row = tl.load(query_ids + row.to(tl.int64) * IDS + number, mask=row < num_rows, other=0)
        of_column = tl.load(column_ids + column.to(tl.int64) * IDS + number, mask=column < num_with_ids, other=0)
        equal = (of_row[:, None] == of_column[None, :]) & (column < num_with_ids)[None, :]
        if MULTIPLE:
            alike = alike | equal
        else:
            counting = tl.where(equal, float("-inf"), counting)
    if MULTIPLE:
        counting = tl.where(alike, logits, counting)
    if excluded_rows is not None:
        excluded = tl.load(excluded_rows + column, mask=column < num_columns, other=-1)
        counting = tl.where(excluded[None, :] == row[:, None], float("-inf"), counting)
    return counting, alike & (counting > float("-inf"))
