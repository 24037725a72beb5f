"""The reference of `sigmoid_loss` against open_clip's formula in float64: 1e-12 for losses, 1e-11 for gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffcse_kernels import reference, sigmoid_loss
from diffcse_kernels.nn import SigmoidLoss
from diffcse_kernels.types import Ids, SigmoidNeeds
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from tests.support.kernels.eager_info_nce import loss_and_gradients, random_rows
from tests.support.kernels.eager_sigmoid_loss import eager_sigmoid_loss
from tests.support.kernels.live_memory import LiveMemory


def numbers(temperature: float = 0.1, bias: float = -10.0, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    return {"temperature": torch.tensor([temperature], dtype=dtype), "bias": torch.tensor(bias, dtype=dtype)}


def check(inputs: dict[str, Tensor], **options: Any) -> None:
    loss, gradients = loss_and_gradients(sigmoid_loss, inputs, **options)
    expected, expected_gradients = loss_and_gradients(eager_sigmoid_loss, inputs, **options)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradients, expected_gradients, rtol=1e-11, atol=1e-11)


IDS = torch.tensor([[0, 1], [2, 2**40], [0, 3], [5, 5], [2**40, 1]])
OPTIONS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "sum": {"reduction": "sum"},
    "none": {"reduction": "none"},
    "dot product": {"normalize": False},
    "one id": {"query_ids": IDS[:, 0], "key_ids": torch.arange(8) % 3},
    "two ids": {"query_ids": IDS, "key_ids": IDS[[4, 0, 1, 2, 3, 0, 1, 2]], "reduction": "none"},
    "all the same id": {"query_ids": torch.zeros(5, dtype=torch.long), "key_ids": torch.zeros(8, dtype=torch.long)},
}


@pytest.mark.parametrize("size", [1, 32 * 2**20])  # single rows; everything at once
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_equals_the_eager_expression_in_float64(
    options: dict[str, Any], size: int, block_bytes: Callable[[int], None]
) -> None:
    block_bytes(size)
    inputs = {"queries": random_rows(5, 6, seed=1), "keys": random_rows(8, 6, seed=2), **numbers(0.3, -1.2)}
    check(inputs, positive_offset=3, **options)


@pytest.mark.parametrize(
    ("temperature", "bias"), [(0.1, -10.0), (0.01, -10.0), (0.01, 10.0), (0.5, -60.0), (0.5, 60.0)]
)
def test_extreme_logits_neither_overflow_nor_lose_small_losses(temperature: float, bias: float) -> None:
    """float32 against float64: a pair's relative error is that of its logit, at most 120 * 2^-23 = 1.4e-5.

    Where all slopes are 1, their sums cancel: 1e-6.
    """
    inputs = {
        "queries": torch.eye(4) + 0.1 * random_rows(4, 4).float(),
        "keys": torch.eye(4),
        **numbers(temperature, bias, torch.float32),
    }
    loss, gradients = loss_and_gradients(sigmoid_loss, inputs, reduction="none")
    truth = loss_and_gradients(eager_sigmoid_loss, {k: v.double() for k, v in inputs.items()}, reduction="none")
    torch.testing.assert_close(loss, truth[0].float(), rtol=3e-5, atol=1e-37)
    for gradient, exact in zip(gradients, truth[1], strict=True):
        assert (gradient - exact).norm() <= 3e-5 * exact.norm() + (1e-6 if bias > 0 else 1e-37)


def test_a_pair_that_is_nearly_certain_keeps_its_loss() -> None:
    """-log(sigmoid(30)) is 9.4e-14, and 0 where the sigmoid is rounded first."""
    row = torch.ones(1, 4)
    assert float(sigmoid_loss(row, row, 0.1, 20.0)) == pytest.approx(9.3576e-14, rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_computed_in_float32_and_rounded_once(dtype: torch.dtype) -> None:
    keys = random_rows(50, 12, seed=2)
    inputs = {
        "queries": (keys[:33] + random_rows(33, 12, seed=1)).to(dtype),
        "keys": keys.float(),
        **numbers(0.1, -5.0),
    }
    found = loss_and_gradients(sigmoid_loss, inputs)
    truth = loss_and_gradients(eager_sigmoid_loss, {k: v.double() for k, v in inputs.items()})
    assert found[0].dtype == torch.float32
    assert float(found[0]) == pytest.approx(float(truth[0]), rel=1e-5)
    for gradient, exact, given in zip(found[1], truth[1], inputs.values(), strict=True):
        assert gradient.dtype == given.dtype
        assert (gradient - exact).norm() < (torch.finfo(given.dtype).eps + 1e-5) * exact.norm()


def test_rows_without_a_direction_and_no_rows_at_all() -> None:
    queries, keys = random_rows(4, 6, seed=1), random_rows(4, 6, seed=2)
    queries[1], keys[2] = 0, 0
    loss, gradients = loss_and_gradients(sigmoid_loss, {"queries": queries, "keys": keys})
    torch.testing.assert_close(loss, eager_sigmoid_loss(queries, keys))
    assert gradients[0][0].any() and not gradients[0][1].any() and not gradients[1][2].any()
    loss, gradients = loss_and_gradients(sigmoid_loss, {"queries": queries[:0], "keys": keys, **numbers()})
    assert loss == 0 and not any(gradient.any() for gradient in gradients)


def compute(queries: Tensor, keys: Tensor, needs: SigmoidNeeds, coefficients: Tensor | None = None) -> None:
    """What the operator runs, where modes that count memory and operations see inside."""
    ids = torch.arange(len(queries))[:, None]
    reference.sigmoid_loss(queries, keys, *numbers().values(), coefficients, Ids(ids, ids), 0, True, needs)


def test_memory_is_a_block_and_copies_of_the_inputs_with_ids_too(
    block_bytes: Callable[[int], None], peak_memory: Callable[[Callable[[], Any]], int]
) -> None:
    count, width = 1024, 16
    matrix, rows = 4 * count**2, 4 * count * width
    block_bytes(matrix // 32)
    queries, keys = (random_rows(count, width, seed=seed, dtype=torch.float32) for seed in (1, 2))
    peak = peak_memory(lambda: compute(queries, keys, SigmoidNeeds(*[True] * 4), torch.ones(count)))
    assert peak < matrix // 32 + 10 * rows
    assert peak_memory(lambda: eager_sigmoid_loss(queries.requires_grad_(), keys).backward()) > 2 * matrix


def test_forward_alone_is_one_product_and_a_learnt_bias_needs_no_other() -> None:
    queries, keys = torch.randn(64, 32), torch.randn(64, 32)
    for needs, products in (((False, False, False, True), 1), ((True, False, False, False), 2)):
        with FlopCounterMode(display=False) as counter:
            compute(queries, keys, SigmoidNeeds(*needs), torch.ones(64))
        assert counter.get_total_flops() == products * 2 * 64 * 64 * 32


def operator_arguments(reduction: str, impl: str) -> tuple[Any, ...]:
    """What the public function hands to `diffcse_kernels::sigmoid_loss`."""
    queries, keys = (random_rows(4, count, seed=count, dtype=torch.float32).T for count in (6, 9))
    learnt = [tensor.requires_grad_() for tensor in (queries, keys, *numbers(dtype=torch.float32).values())]
    ids = torch.arange(6)[:, None], torch.arange(9)[:, None]
    coefficients = None if reduction == "none" else torch.full((6,), 0.5)
    return *learnt, coefficients, *ids, 2, True, [coefficients is not None] * 4, impl


def test_backward_makes_the_gradients_and_nothing_else_of_their_size() -> None:
    queries, keys = (random_rows(40, 64, seed=seed).requires_grad_() for seed in (1, 2))
    loss = sigmoid_loss(queries, keys, impl="reference")
    with LiveMemory() as memory:
        loss.backward()
    assert memory.peak < 1.5 * 2 * queries.nbytes


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_the_operators_keep_their_promises_to_pytorch(reduction: str) -> None:
    arguments = operator_arguments(reduction, "reference")
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")  # the last one, of compiling, has a test
    torch.library.opcheck(torch.ops.diffcse_kernels.sigmoid_loss.default, arguments, test_utils=checks)
    plain = [tensor.detach() for tensor in arguments[:4]]
    backward = (torch.ones(6), *plain, *arguments[5:9], [True, False, True, True], "reference")
    torch.library.opcheck(torch.ops.diffcse_kernels.sigmoid_loss_backward.default, backward, test_utils=checks)


def test_compiles_into_one_graph_with_the_same_result() -> None:
    def step(queries: Tensor, keys: Tensor, temperature: Tensor, bias: Tensor) -> Tensor:
        options = {"query_ids": torch.arange(6), "key_ids": torch.arange(6) % 4}
        return sigmoid_loss(queries * 2, keys, temperature, bias) + sigmoid_loss(queries, keys, **options)

    inputs = {name: random_rows(6, 4, seed=seed, dtype=torch.float32) for seed, name in enumerate(("queries", "keys"))}
    inputs |= numbers(dtype=torch.float32)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(loss_and_gradients(compiled, inputs), loss_and_gradients(step, inputs), rtol=0, atol=0)


def test_the_module_learns_temperature_and_bias_or_has_no_parameters() -> None:
    queries, keys = random_rows(6, 4, seed=1), random_rows(7, 4, seed=2)
    ids = torch.arange(6) % 2, torch.arange(7) % 3
    module = SigmoidLoss(0.2, -3.0, learnable=True, reduction="sum").double()
    module(queries, keys, *ids).backward()
    assert sorted(name for name, _ in module.named_parameters()) == ["bias", "log_temperature"]
    learnt = (module.bias, module.log_temperature)
    leaves = [parameter.detach().clone().requires_grad_() for parameter in learnt]
    options = {"query_ids": ids[0], "key_ids": ids[1], "reduction": "sum"}
    truth = eager_sigmoid_loss(queries, keys, leaves[1].exp(), leaves[0], **options)
    for parameter, exact in zip(learnt, torch.autograd.grad(truth, leaves), strict=True):
        torch.testing.assert_close(parameter.grad, exact, rtol=1e-11, atol=1e-11)
    fixed = SigmoidLoss()
    assert not list(fixed.parameters())
    torch.testing.assert_close(fixed(queries, keys), eager_sigmoid_loss(queries, keys), rtol=1e-12, atol=0)
    with pytest.raises(ValueError, match="temperature must be a positive finite number"):
        SigmoidLoss(0.0)


ROWS = torch.zeros(4, 3)
FOUR = torch.arange(4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"queries": ROWS[0]}, "queries must be a floating-point matrix"),
        ({"positive_offset": 1}, "are not all among 4 keys"),
        ({"temperature": -1.0}, "temperature must be a positive finite number"),
        ({"bias": torch.zeros(2)}, "a bias tensor must hold one floating-point number"),
        ({"query_ids": FOUR}, "need query_ids and key_ids both"),
        ({"query_ids": FOUR, "key_ids": FOUR[:3]}, r"the ids of keys must be integers \[4\] or \[4, C\]"),
        ({"query_ids": FOUR, "key_ids": FOUR[:, None].expand(4, 2)}, "must have the same number C"),
        ({"reduction": "average"}, "reduction must be"),
        ({"impl": "cuda"}, "impl must be one of"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sigmoid_loss(**{"queries": ROWS, "keys": ROWS, **arguments})
