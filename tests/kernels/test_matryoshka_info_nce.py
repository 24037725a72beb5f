"""The reference of `matryoshka_info_nce` against a call for each prefix, in float64: 1e-12; gradients 1e-11."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffcse_kernels import matryoshka_info_nce, reference
from diffcse_kernels.nn import MatryoshkaInfoNCE
from diffcse_kernels.types import Needs
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, mm_flop

from tests.support.kernels.eager_info_nce import loss_and_gradients, random_rows
from tests.support.kernels.eager_matryoshka_info_nce import eager_matryoshka_info_nce

IDS = {"query_ids": torch.tensor([[0, 1], [2, 2**40], [0, 3], [5, 5], [2**40, 1]])}
IDS |= {"key_ids": IDS["query_ids"][[4, 0, 1, 2, 3, 0, 1, 2]]}
OPTIONS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "weights": {"weights": [0.5, -1.0, 2.0]},
    "none": {"reduction": "none", "row_weights": torch.tensor([0.0, 1.0, 2.5, 0.3, 1.0])},
    "sum, dot product": {"reduction": "sum", "normalize": False},
    "ids": IDS,
}


@pytest.mark.parametrize("size", [1, 32 * 2**20])  # single rows; everything at once
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_equals_a_call_for_each_prefix_in_float64(
    options: dict[str, Any], size: int, block_bytes: Callable[[int], None]
) -> None:
    block_bytes(size)
    options = {"widths": [1, 4, 6], "positive_offset": 3, **options}
    inputs = {name: random_rows(count, 7, seed=count) for name, count in (("queries", 5), ("keys", 8))}
    inputs |= {"hard_negatives": random_rows(4, 7), "temperature": torch.tensor([0.3], dtype=torch.float64)}
    loss, gradients = loss_and_gradients(matryoshka_info_nce, inputs, **options)
    expected, expected_gradients = loss_and_gradients(eager_matryoshka_info_nce, inputs, **options)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradients, expected_gradients, rtol=1e-11, atol=1e-11)
    assert not gradients[0][:, 6].any() and not gradients[1][:, 6].any()  # beyond the widest prefix


def test_symmetric_is_the_mean_of_both_directions() -> None:
    inputs = {"queries": random_rows(5, 6, seed=1), "keys": random_rows(5, 6, seed=2)}
    options = {"temperature": 0.1, "widths": [2, 6], "symmetric": True}
    options |= {"query_ids": torch.tensor([0, 0, 1, 2, 3]), "key_ids": torch.tensor([0, 4, 3, 2, 1])}
    found = loss_and_gradients(matryoshka_info_nce, inputs, **options)
    torch.testing.assert_close(found, loss_and_gradients(eager_matryoshka_info_nce, inputs, **options))


def test_nearly_certain_positives_keep_their_relative_precision() -> None:
    """float32 to 1e-4: 1 - p would be zero."""
    inputs = {
        name: torch.eye(4) + 0.1 * random_rows(4, 4, seed=seed).float() for seed, name in enumerate(("queries", "keys"))
    }
    options: dict[str, Any] = {"temperature": 0.05, "widths": [3, 4], "weights": [0.0, 1.0]}
    loss, gradients = loss_and_gradients(matryoshka_info_nce, inputs, **options)
    double = {name: value.double() for name, value in inputs.items()}
    expected, expected_gradients = loss_and_gradients(eager_matryoshka_info_nce, double, **options)
    assert 0 < float(expected) < 1e-6
    assert float(loss) == pytest.approx(float(expected), rel=1e-4)
    for gradient, exact in zip(gradients, expected_gradients, strict=True):
        assert (gradient - exact).norm() < 1e-4 * exact.norm()


def test_prefixes_without_a_direction_and_no_rows_at_all() -> None:
    queries, keys = random_rows(4, 6, seed=1), random_rows(4, 6, seed=2)
    queries[1, :2], keys[2] = 0, 0  # the shorter prefix of one, and all of another
    loss, gradients = loss_and_gradients(
        matryoshka_info_nce, {"queries": queries, "keys": keys}, temperature=0.1, widths=[2, 5]
    )
    expected = eager_matryoshka_info_nce(queries, keys, 0.1, [2, 5])
    torch.testing.assert_close(loss, expected)
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert gradients[0][1].any() and not gradients[1][2].any()
    nothing = matryoshka_info_nce(queries[:0], keys, 0.1, [2, 5])
    assert nothing == 0


def compute(queries: Tensor, keys: Tensor, widths: list[int], needs: Needs, coefficients: Tensor | None) -> None:
    """What the operator runs, where modes that count memory and operations see inside."""
    weights = [1.0] * len(widths)
    reference.matryoshka_info_nce(
        queries, keys, torch.tensor(0.05), coefficients, None, widths, weights, 0, True, needs
    )


def addmm_flops(_: torch.Size, left: torch.Size, right: torch.Size, **__: Any) -> int:
    return int(mm_flop(left, right))


@pytest.mark.parametrize(("needs", "products"), [((True, True, False), 3), ((False, False, True), 1)])
def test_every_segment_is_multiplied_once_forward_and_once_a_gradient(
    needs: tuple[bool, bool, bool], products: int
) -> None:
    queries, keys = torch.randn(64, 32), torch.randn(64, 32)
    with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: addmm_flops}) as counter:
        compute(queries, keys, [4, 8, 16, 32], Needs(*needs), torch.ones(64))
    assert counter.get_total_flops() == products * 2 * 64 * 64 * 32


def test_memory_is_a_block_and_copies_of_the_inputs(
    block_bytes: Callable[[int], None], peak_memory: Callable[[Callable[[], Any]], int]
) -> None:
    count, width = 512, 16
    matrix, rows = 4 * count**2, 4 * count * width
    block_bytes(matrix // 8)
    queries, keys = (random_rows(count, width, seed=seed, dtype=torch.float32) for seed in (1, 2))
    peak = peak_memory(lambda: compute(queries, keys, [4, 8, 16], Needs(True, True, True), torch.ones(count)))
    assert peak < matrix // 8 + 10 * rows


def test_the_operators_keep_their_promises_to_pytorch_and_compile_into_one_graph() -> None:
    queries, keys = (random_rows(4, 6, seed=seed, dtype=torch.float32).T.requires_grad_() for seed in (0, 1))
    temperature, ids = torch.tensor([0.1], requires_grad=True), torch.arange(6)[:, None]
    told = (ids, ids, [1, 4], [1.0, 2.0], 0, True, [True] * 3, "reference")
    coefficients = torch.full((6,), 0.5)
    forward, backward = (
        torch.ops.diffcse_kernels.matryoshka_info_nce,
        torch.ops.diffcse_kernels.matryoshka_info_nce_backward,
    )
    torch.library.opcheck(
        forward.default, (queries, keys, temperature, coefficients, *told), test_utils="test_faketensor"
    )
    plain = [tensor.detach() for tensor in (queries, keys, temperature)]
    torch.library.opcheck(backward.default, (coefficients, *plain, *told), test_utils="test_faketensor")

    def step(queries: Tensor, keys: Tensor) -> Tensor:
        return (
            matryoshka_info_nce(queries, keys, 0.1, [1, 4])
            + matryoshka_info_nce(queries, keys, 0.1, [2], reduction="none").sum()
        )

    inputs = {"queries": plain[0], "keys": plain[1]}
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(loss_and_gradients(compiled, inputs), loss_and_gradients(step, inputs), rtol=0, atol=0)


def test_the_module_is_the_function_with_its_options_chosen_once() -> None:
    queries, keys, hard = (random_rows(6, 4, seed=seed) for seed in range(3))
    module = MatryoshkaInfoNCE([2, 3], [1.0, 0.5], temperature=0.2, learnable=True, reduction="sum").double()
    module(queries, keys, hard).backward()
    logarithm = module.log_temperature.detach().clone().requires_grad_()
    options: dict[str, Any] = {"hard_negatives": hard, "reduction": "sum"}
    eager_matryoshka_info_nce(queries, keys, logarithm.exp(), [2, 3], [1.0, 0.5], **options).backward()
    torch.testing.assert_close(module.log_temperature.grad, logarithm.grad, rtol=1e-11, atol=1e-11)


ROWS = torch.zeros(4, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"widths": []}, r"widths must be increasing numbers from 1 to 3, not \[\]"),
        ({"widths": [2, 1]}, "widths must be increasing"),
        ({"widths": [2, 2]}, "widths must be increasing"),
        ({"widths": [0, 2]}, "widths must be increasing"),
        ({"widths": [4]}, "widths must be increasing"),
        ({"weights": [1.0]}, "weights must be a finite number for each of 2 widths"),
        ({"weights": [1.0, float("nan")]}, "weights must be a finite number"),
        ({"hard_negatives": ROWS, "symmetric": True}, "no hard_negatives"),
        ({"reduction": "average"}, "reduction must be"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        matryoshka_info_nce(**{"queries": ROWS, "keys": ROWS, "temperature": 0.1, "widths": [1, 3], **arguments})
