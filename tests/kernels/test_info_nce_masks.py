"""Columns that do not count, or are further positives: against the eager expression with masks of N x M.

In float64, values to 1e-12 and gradients to 1e-11, each relative and absolute.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffcse_kernels import NegativeSet, info_nce, reference
from diffcse_kernels.types import Ids, Needs, Options, Upstream

from tests.support.kernels.eager_info_nce import eager_info_nce, loss_and_gradients, random_rows
from tests.support.kernels.masked_info_nce import CASES, D, M, N, ids, masked_info_nce, masked_inputs


def check(options: dict[str, Any], columns: int = M) -> None:
    inputs = masked_inputs(options, columns=columns)
    options = {name: value for name, value in options.items() if name != "temperature"}
    found = loss_and_gradients(masked_info_nce(info_nce), inputs, **options)
    truth = loss_and_gradients(masked_info_nce(eager_info_nce), inputs, **options)
    torch.testing.assert_close(found[0], truth[0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found[1], truth[1], rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("size", (1, 3000, 32 * 2**20))
@pytest.mark.parametrize("case", CASES)
def test_equals_the_eager_expression_in_float64(case: str, size: int, block_bytes: Callable[[int], None]) -> None:
    block_bytes(size)
    check({"positive_offset": 7, **CASES[case]})


@pytest.mark.parametrize("options", [{}, {"margin": 0.1}, {"multiple_positives": True}, {"return_lse": True}], ids=str)
def test_the_other_direction_takes_the_ids_exchanged(options: dict[str, Any]) -> None:
    given = {"query_ids": ids(N), "key_ids": ids(N, seed=1)}
    check({"symmetric": True, **given, **options}, columns=N)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_row_without_negatives_has_no_loss_and_no_gradient(reduction: str) -> None:
    inputs = {"queries": random_rows(N, D, seed=1), "keys": random_rows(M, D, seed=2)}
    same = {"query_ids": torch.zeros(N, dtype=torch.int32), "key_ids": torch.zeros(M, dtype=torch.int32)}
    loss, gradients = loss_and_gradients(info_nce, inputs, reduction=reduction, **same)
    assert not loss.any()
    assert not any(gradient.any() for gradient in gradients)
    _, stats, lse = info_nce(**inputs, **same, return_stats=True, return_lse=True, temperature=0.1)
    assert stats.accuracy == 1
    torch.testing.assert_close(lse.mean(), stats.positive_cosine / 0.1)


def test_logsumexps_of_several_calls_join() -> None:
    """One partition function over keys and documents of two calls is that of all of them in one call."""
    queries, keys, others = (random_rows(N, D, seed=seed).requires_grad_() for seed in range(3))
    _, whole = info_nce(queries, keys, negatives=[NegativeSet(others, excluded_offset=0)], return_lse=True)
    _, part = info_nce(queries, keys, return_lse=True, reduction="none")
    # against the others' diagonal as positives the negatives' own sum is log(exp(lse) - exp(positive))
    of_diagonal, with_diagonal = info_nce(queries, others, return_lse=True, reduction="none")
    rest = with_diagonal + torch.log(-torch.expm1(-of_diagonal))
    joined = torch.logaddexp(part, rest)
    torch.testing.assert_close(joined, whole, rtol=1e-9, atol=1e-9)
    found, truth = (torch.autograd.grad(x.sum(), (queries, keys, others), retain_graph=True) for x in (joined, whole))
    torch.testing.assert_close(found, truth, rtol=1e-8, atol=1e-8)


@pytest.mark.slow
def test_masks_take_no_memory_of_the_size_of_the_matrix(peak_memory: Callable[[Callable[[], Any]], int]) -> None:
    """At most a tenth more than without them, and less than a quarter of what the eager expression takes."""
    count = 8192
    queries, keys = (random_rows(count, 256, seed=seed, dtype=torch.float32) for seed in (1, 2))
    given = Ids(torch.arange(3 * count).reshape(-1, 3), torch.arange(3 * count).reshape(-1, 3))
    upstream, needs = Upstream(torch.full((count,), 1 / count)), Needs(True, True, True)

    def peak(ids: Ids | None, margin: float | None) -> int:
        options = Options(count, 0, None, 0.0, normalize=True, margin=margin)
        inputs = queries, keys, torch.tensor(0.05), upstream, ids, options, needs
        return peak_memory(lambda: reference.contrast(*inputs))

    plain = peak(None, None)
    assert peak(given, 0.1) < 1.1 * plain
    leaf = queries.clone().requires_grad_()
    options = {"query_ids": given.queries, "key_ids": given.columns, "margin": 0.1}
    assert peak_memory(lambda: eager_info_nce(leaf, keys, **options).backward()) > 4 * plain


def test_strided_rows_of_several_dtypes() -> None:
    wide = {"queries": random_rows(D, N, seed=1).T, "keys": random_rows(M, 2 * D, seed=2)[:, ::2]}
    inputs = {"queries": wide["queries"].bfloat16(), "keys": wide["keys"].float()}
    strided_ids = {"query_ids": ids(3, N).T, "key_ids": ids(M, 6, seed=1)[:, ::2]}
    options: dict[str, Any] = {**strided_ids, "margin": 0.1}
    loss, gradients = loss_and_gradients(info_nce, inputs, **options)
    exact = {name: values.double() for name, values in inputs.items()}
    truth, true_gradients = loss_and_gradients(eager_info_nce, exact, **options)
    torch.testing.assert_close(loss.double(), truth, rtol=1e-5, atol=1e-6)
    for gradient, true, given in zip(gradients, true_gradients, inputs.values(), strict=True):
        assert gradient.dtype == given.dtype
        torch.testing.assert_close(
            gradient.double(), true, rtol=1e-2 if given.dtype == torch.bfloat16 else 1e-4, atol=1e-5
        )


def test_no_rows_sum_to_zero() -> None:
    queries, keys = torch.zeros(0, D, requires_grad=True), torch.randn(3, D, requires_grad=True)
    none, three = torch.zeros(0, dtype=torch.int64), torch.zeros(3, dtype=torch.int64)
    loss = info_nce(queries, keys, query_ids=none, key_ids=three, margin=0.0, reduction="sum")
    loss.backward()
    assert loss == 0 and keys.grad is not None and not keys.grad.any()


ROWS, NUMBERS = torch.zeros(4, 3), torch.arange(4)
GIVEN = {"query_ids": NUMBERS, "key_ids": NUMBERS}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"query_ids": NUMBERS}, "need query_ids and key_ids both"),
        ({**GIVEN, "key_ids": NUMBERS[:3]}, r"the ids of keys must be integers \[4\] or \[4, C\], not \[3\]"),
        ({**GIVEN, "query_ids": NUMBERS.float()}, r"query_ids must be integers .* of torch.float32"),
        ({**GIVEN, "query_ids": NUMBERS == 0}, "of torch.bool"),
        ({**GIVEN, "query_ids": NUMBERS.reshape(4, 1, 1)}, r"\[4, 1, 1\]"),
        ({"query_ids": NUMBERS.reshape(4, 1)[:, :0], "key_ids": NUMBERS.reshape(4, 1)[:, :0]}, r"\[4, 0\]"),
        ({**GIVEN, "query_ids": NUMBERS.reshape(4, 1).repeat(1, 2)}, r"same number C, not \[1, 2\]"),
        ({**GIVEN, "key_ids": NUMBERS.to("meta")}, "the ids of keys must be on cpu, where the rows are, not on meta"),
        ({**GIVEN, "hard_negative_ids": NUMBERS}, "hard_negative_ids need hard_negatives"),
        ({"negatives": [NegativeSet(ROWS, NUMBERS)]}, "need query_ids and key_ids both"),
        ({"negatives": [NegativeSet(ROWS[:, :2])]}, r"negatives\[0\] must be a floating-point \[K, 3\]"),
        ({"negatives": [NegativeSet(ROWS, None, 1)]}, "there are 4 and excluded_offset=1"),
        ({"negatives": [NegativeSet(ROWS)], "symmetric": True}, "no other negatives"),
        ({"multiple_positives": True}, "multiple_positives=True needs query_ids"),
        ({"margin": float("nan")}, "margin must be a finite number or None, not nan"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        info_nce(**{"queries": ROWS, "keys": ROWS, **arguments})
