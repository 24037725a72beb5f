"""The losses as modules, for any trainer, on one process or on many.

With a `group` of W processes, every process passes its own rows. They are compared with the keys of all processes.
Let L be the loss that one process would compute from all inputs, concatenated in the order of the processes. Each
process's loss is W times its own rows' terms of L. After every process has back-propagated its own loss,

    L                                       = the mean of the losses over the processes
    gradient of L by a shared parameter     = the mean of its gradients, as DistributedDataParallel takes it
    gradient of L by a process's own input  = its gradient / W

A learnt temperature is a shared parameter.

All processes of the group must make the call and its backward pass together, even a process that has no rows. They must
use the same options and dtypes, and pass the same arguments. An error that only one process notices leaves the others
waiting.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor, full, nn

from .arguments import check_reduction
from .gather import Group, check_group, gather_rows, place, row_counts
from .info_nce import info_nce
from .matryoshka_info_nce import matryoshka_info_nce
from .sigmoid_loss import sigmoid_loss
from .types import NegativeSet, Reduction

__all__ = ["InfoNCE", "MatryoshkaInfoNCE", "SigmoidLoss"]


class _Loss(nn.Module):
    """Base of the modules: a temperature that may be learnt, and a group of processes that share their rows."""

    def __init__(
        self,
        temperature: float,
        learnable: bool,
        normalize: bool,
        reduction: Reduction,
        impl: str,
        group: Group | None,
        equal_shares: bool,
    ) -> None:
        super().__init__()
        if not (temperature > 0 and math.isfinite(temperature)):
            raise ValueError(f"temperature must be a positive finite number, not {temperature}")
        check_reduction(reduction)
        check_group(group)
        self.log_temperature = nn.Parameter(full((), math.log(temperature))) if learnable else None
        self._temperature = temperature
        self.normalize = normalize
        self.reduction: Reduction = reduction
        self.impl = impl
        self.group = group
        self.equal_shares = equal_shares

    @property
    def temperature(self) -> float | Tensor:
        """A number, or a tensor of shape [] if it is learnt."""
        return self._temperature if self.log_temperature is None else self.log_temperature.exp()

    def _peers(self) -> Group | None:
        """The group, or None if it holds no other process."""
        return self.group if self.group is not None and place(self.group)[1] > 1 else None

    @property
    def _own_reduction(self) -> Reduction:
        """The reduction over a process's own rows, before `_Gathering.part`."""
        return "none" if self.reduction == "none" else "sum"

    def extra_repr(self) -> str:
        learnt = "" if self.log_temperature is None else " (learnt)"
        return f"temperature={_number(self.temperature):.4g}{learnt}, normalize={self.normalize}, impl={self.impl!r}"


class InfoNCE(_Loss):
    """`info_nce` with its options fixed; see there for what it computes, allocates and raises.

    With `symmetric` and a `group` it is the loss of open_clip with `gather_with_grad`, without its two matrices.
    (open_clip's default, without that option, gives the towers 1 / W of this gradient.)

    Args:
        temperature: similarities are divided by this. If `learnable`, it is the initial value.
        learnable: make the temperature a parameter. The parameter is its logarithm, as in CLIP, so the temperature
            stays positive. Do not apply weight decay to it.
        hard_negative_weight: added to the logit of a row's own hard negative.
        normalize: compare by cosine (True) or by dot product (False).
        symmetric: average over both directions, as CLIP does.
        margin: a column is not a negative of a row if its similarity exceeds the positive's by more than this.
        multiple_positives: columns that share an id with a row are its positives too; they are not left out.
        reduction: "mean", "sum" or "none". With a group, "none" returns the losses of this process's rows, without
            any factor.
        impl: "auto", "triton" or "reference".
        group: the processes whose rows are compared: a `torch.distributed.ProcessGroup`, "world" for all processes, or
            None for this process alone. Without a default group, "world" is this process alone.
            `torch.distributed.group.WORLD` is None before `init_process_group`.
        equal_shares: pass True if each tensor is known to have the same number of rows on every process. Otherwise
            the processes exchange the numbers, which waits for the device.

    Raises:
        ValueError: the temperature is not a positive finite number, or the reduction or group is invalid.

    Example:
        >>> import torch
        >>> from diffcse_kernels.nn import InfoNCE
        >>> loss = InfoNCE(temperature=0.5, learnable=True)
        >>> loss(torch.eye(3), torch.eye(3)).backward()
        >>> loss, bool(loss.log_temperature.grad > 0)  # a lower temperature would lower this loss
        (InfoNCE(temperature=0.5 (learnt), normalize=True, impl='auto'), True)
    """

    def __init__(
        self,
        temperature: float = 0.05,
        *,
        learnable: bool = False,
        hard_negative_weight: float = 0.0,
        normalize: bool = True,
        symmetric: bool = False,
        margin: float | None = None,
        multiple_positives: bool = False,
        reduction: Reduction = "mean",
        impl: str = "auto",
        group: Group | None = None,
        equal_shares: bool = False,
    ) -> None:
        super().__init__(temperature, learnable, normalize, reduction, impl, group, equal_shares)
        self.hard_negative_weight = hard_negative_weight
        self.symmetric = symmetric
        self.margin = margin
        self.multiple_positives = multiple_positives

    def forward(
        self,
        queries: Tensor,
        keys: Tensor,
        hard_negatives: Tensor | None = None,
        *,
        query_ids: Tensor | None = None,
        key_ids: Tensor | None = None,
        hard_negative_ids: Tensor | None = None,
        negatives: Sequence[NegativeSet] = (),
        row_weights: Tensor | None = None,
    ) -> Tensor:
        """Loss of `queries` [N, D]; their positives are the first N of `keys` [M, D].

        `hard_negatives`, `query_ids`, `key_ids`, `hard_negative_ids`, `negatives` and `row_weights` are the arguments
        of the same names in `info_nce`. With a group, all of them hold this process's own rows, and offsets count
        these rows: row i leaves out this process's column `excluded_offset + i` of a set.

        Returns:
            The loss, float32 (float64 for float64 inputs): of shape [], or [N] if the reduction is "none".
        """
        if group := self._peers():
            own = [NegativeSet(queries, query_ids, 0), NegativeSet(keys, key_ids, 0), *negatives]
            if hard_negatives is not None:
                own.append(NegativeSet(hard_negatives, hard_negative_ids, 0 if self.hard_negative_weight else None))
            return self._over_group(_Gathering(own, group, self.equal_shares), hard_negatives is not None, row_weights)
        return self._loss(
            queries,
            keys,
            hard_negatives=hard_negatives,
            query_ids=query_ids,
            key_ids=key_ids,
            hard_negative_ids=hard_negative_ids,
            negatives=negatives,
            row_weights=row_weights,
            symmetric=self.symmetric,
            reduction=self.reduction,
        )

    def _loss(self, queries: Tensor, keys: Tensor, **options: Any) -> Tensor:
        return info_nce(
            queries,
            keys,
            self.temperature,
            hard_negative_weight=self.hard_negative_weight,
            normalize=self.normalize,
            margin=self.margin,
            multiple_positives=self.multiple_positives,
            impl=self.impl,
            **options,
        )

    def _over_group(self, rows: _Gathering, has_hard_negatives: bool, row_weights: Tensor | None) -> Tensor:
        """This process's loss; `rows` holds queries, keys, further sets, and the hard negatives last."""
        queries, keys, *others = rows.own
        if self.symmetric and (others or len(queries.vectors) != len(keys.vectors)):
            raise ValueError("symmetric=True needs as many queries as keys, no hard_negatives and no other negatives")
        options: dict[str, Any] = {"row_weights": row_weights, "reduction": self._own_reduction}
        further = [rows.everybodys(number) for number in range(2, len(rows.own))]
        hard: dict[str, Any] = {}
        if has_hard_negatives:
            vectors, ids, offset = further.pop()
            hard = {"hard_negatives": vectors, "hard_negative_ids": ids, "hard_negative_offset": offset or 0}
        loss = self._one_direction(queries, rows.everybodys(1), negatives=further, **hard, **options)
        if self.symmetric:
            loss = (loss + self._one_direction(keys, rows.everybodys(0), **options)) / 2
        return rows.part(loss, self.reduction, row_weights)

    def _one_direction(self, rows: NegativeSet, columns: NegativeSet, **options: Any) -> Tensor:
        """The loss of `rows`; the positive of row 0 is at the offset of `columns`."""
        offset, ids = columns.excluded_offset, {"query_ids": rows.ids, "key_ids": columns.ids}
        return self._loss(rows.vectors, columns.vectors, positive_offset=offset, **ids, **options)


class MatryoshkaInfoNCE(InfoNCE):
    """`matryoshka_info_nce` with its options fixed; see there for what it computes, allocates and raises.

    It is called like `InfoNCE`, except that it refuses `negatives`.

    Args:
        widths: number of entries of each prefix, increasing.
        weights: the weight of each prefix's loss; None means that all are 1.
        temperature, learnable, normalize, symmetric, reduction, impl, group, equal_shares: as in `InfoNCE`.

    Raises:
        ValueError: the temperature is not a positive finite number, or the reduction or group is invalid.

    Example:
        >>> import torch
        >>> from diffcse_kernels.nn import MatryoshkaInfoNCE
        >>> loss = MatryoshkaInfoNCE(widths=(2, 4), temperature=1.0)
        >>> loss(torch.ones(3, 4), torch.ones(3, 4)).div(2).exp().round()  # both prefixes: three equal logits
        tensor(3.)
    """

    def __init__(
        self,
        widths: Sequence[int],
        weights: Sequence[float] | None = None,
        *,
        temperature: float = 0.05,
        learnable: bool = False,
        normalize: bool = True,
        symmetric: bool = False,
        reduction: Reduction = "mean",
        impl: str = "auto",
        group: Group | None = None,
        equal_shares: bool = False,
    ) -> None:
        super().__init__(
            temperature,
            learnable=learnable,
            normalize=normalize,
            symmetric=symmetric,
            reduction=reduction,
            impl=impl,
            group=group,
            equal_shares=equal_shares,
        )
        self.widths = tuple(widths)
        self.weights = None if weights is None else tuple(weights)

    def _loss(self, queries: Tensor, keys: Tensor, **options: Any) -> Tensor:
        options.pop("hard_negative_offset", None)  # only a hard negative weight would need it
        if options.pop("negatives", ()):
            raise ValueError("matryoshka_info_nce takes keys and hard_negatives, and no further negatives")
        numbers = (self.temperature, self.widths, self.weights)
        return matryoshka_info_nce(queries, keys, *numbers, normalize=self.normalize, impl=self.impl, **options)


class SigmoidLoss(_Loss):
    """`sigmoid_loss` with its options fixed; see there for what it computes, allocates and raises.

    Args:
        temperature: similarities are divided by this. If `learnable`, it is the initial value.
        bias: added to the divided similarities. If `learnable`, it is the initial value.
        learnable: make both parameters, as SigLIP does. The parameter for the temperature is its logarithm. Do not
            apply weight decay to either.
        normalize, reduction, impl: as in `sigmoid_loss`.
        group, equal_shares: as in `InfoNCE`.

    Raises:
        ValueError: the temperature is not a positive finite number, or the reduction or group is invalid.

    Example:
        >>> import torch
        >>> from diffcse_kernels.nn import SigmoidLoss
        >>> loss = SigmoidLoss(learnable=True)
        >>> loss(torch.eye(3), torch.eye(3)).backward()
        >>> [name for name, parameter in loss.named_parameters() if parameter.grad is not None]
        ['log_temperature', 'bias']
    """

    def __init__(
        self,
        temperature: float = 0.1,
        bias: float = -10.0,
        *,
        learnable: bool = False,
        normalize: bool = True,
        reduction: Reduction = "mean",
        impl: str = "auto",
        group: Group | None = None,
        equal_shares: bool = False,
    ) -> None:
        super().__init__(temperature, learnable, normalize, reduction, impl, group, equal_shares)
        self.bias: float | Tensor = nn.Parameter(full((), bias)) if learnable else bias

    def forward(
        self, queries: Tensor, keys: Tensor, query_ids: Tensor | None = None, key_ids: Tensor | None = None
    ) -> Tensor:
        """Loss of `queries` [N, D]; their positives are the first N of `keys` [M, D].

        `query_ids` and `key_ids` are as in `sigmoid_loss`.

        Returns:
            The loss, float32 (float64 for float64 inputs): of shape [], or [N] if the reduction is "none".
        """
        if group := self._peers():
            own = [NegativeSet(queries, query_ids, 0), NegativeSet(keys, key_ids, 0)]
            rows = _Gathering(own, group, self.equal_shares)
            everybodys, ids, offset = rows.everybodys(1)
            loss = self._loss(
                queries, everybodys, query_ids, ids, positive_offset=offset, reduction=self._own_reduction
            )
            return rows.part(loss, self.reduction)
        return self._loss(queries, keys, query_ids, key_ids, reduction=self.reduction)

    def _loss(
        self, queries: Tensor, keys: Tensor, query_ids: Tensor | None, key_ids: Tensor | None, **options: Any
    ) -> Tensor:
        return sigmoid_loss(
            queries,
            keys,
            self.temperature,
            self.bias,
            query_ids=query_ids,
            key_ids=key_ids,
            normalize=self.normalize,
            impl=self.impl,
            **options,
        )

    def extra_repr(self) -> str:
        learnt = "" if self.log_temperature is None else " (learnt)"
        return f"temperature={_number(self.temperature):.4g}, bias={_number(self.bias):.4g}{learnt}, impl={self.impl!r}"


def _number(value: float | Tensor) -> float:
    return value.item() if isinstance(value, Tensor) else value


class _Gathering:
    """The rows of all processes of a group, seen from one process."""

    def __init__(self, own: list[NegativeSet], group: Group, equal_shares: bool) -> None:
        """`own` holds this process's sets, queries first; an offset is the index of the vector for its row 0."""
        count = len(own[0].vectors)
        for columns in own:
            first = columns.excluded_offset
            if first is not None and not 0 <= first <= len(columns.vectors) - count:
                raise ValueError(
                    f"this process has {count} queries, and each needs a key, hard negative or excluded vector of its "
                    f"own, but of one of these there are {len(columns.vectors)}, from offset {first} on"
                )
        self.own, self.group = own, group
        self.rank, self.size = place(group)
        if equal_shares:
            self.shares = [[len(each.vectors)] * self.size for each in own]
        else:
            self.shares = row_counts(*(each.vectors for each in own), group=group)
        if not any(self.shares[0]):
            raise ValueError("no process of the group has a query; the loss needs at least one")

    def everybodys(self, number: int) -> NegativeSet:
        """One of the sets, gathered from all processes; its offset counts from the first gathered row."""
        vectors, ids, offset = self.own[number]
        shares = self.shares[number]
        return NegativeSet(
            gather_rows(vectors, shares, self.group),
            None if ids is None else gather_rows(ids, shares, self.group),
            None if offset is None else sum(shares[: self.rank]) + offset,
        )

    def part(self, loss: Tensor, reduction: Reduction, row_weights: Tensor | None = None) -> Tensor:
        """Scale the sum of this process's row losses to W times its terms of L; "none" leaves the losses unchanged."""
        if reduction == "none":
            return loss
        if reduction == "mean":
            shares = self.shares[0]
            total: int | Tensor = sum(shares)
            if row_weights is not None:
                total = gather_rows(row_weights.to(loss.dtype), shares, self.group).sum()
            loss = loss / total
        return loss * self.size
