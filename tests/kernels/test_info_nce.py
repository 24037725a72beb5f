from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffcse_kernels import info_nce, reference
from diffcse_kernels.types import Needs, Options, Upstream
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode, mm_flop

from tests.support.kernels.eager_info_nce import eager_info_nce, loss_and_gradients, random_rows

BYTES_PER_BLOCK = (1, 1000, 32 * 2**20)  # single rows; a few rows and a ragged last block; everything at once


SHAPES = {
    "one row and one key": (1, 1, 5),
    "one row": (1, 9, 4),
    "square": (7, 7, 3),
    "more keys than rows": (13, 29, 17),
    "width one": (6, 11, 1),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "dot product": {"normalize": False, "temperature": 1.3},
    "sum": {"reduction": "sum"},
    "none": {"reduction": "none"},
    "sharp": {"temperature": 0.01},
}


@pytest.mark.parametrize("size", BYTES_PER_BLOCK)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_equals_the_eager_expression_in_float64(
    shape: tuple[int, int, int], options: dict[str, Any], size: int, block_bytes: Callable[[int], None]
) -> None:
    rows, columns, width = shape
    block_bytes(size)
    inputs = {"queries": random_rows(rows, width, seed=1), "keys": random_rows(columns, width, seed=2)}
    options = {"positive_offset": (columns - rows) // 2, **options}
    loss, gradients = loss_and_gradients(info_nce, inputs, **options)
    expected_loss, expected_gradients = loss_and_gradients(eager_info_nce, inputs, **options)
    torch.testing.assert_close(loss, expected_loss, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradients, expected_gradients, rtol=1e-11, atol=1e-11)


EXTRAS: dict[str, dict[str, Any]] = {
    "unweighted": {},
    "weighted": {"hard_negative_weight": 0.7, "hard_negative_offset": 2},
    "weighted, dot product": {"hard_negative_weight": -1.1, "normalize": False, "temperature": 2.0},
    "row weights": {"row_weights": torch.tensor([0.0, 1.0, 2.5, 0.3, 1.0])},
    "row weights, sum": {"row_weights": torch.tensor([0.0, 1.0, 2.5, 0.3, 1.0]), "reduction": "sum"},
    "row weights, none": {"row_weights": torch.tensor([0.0, 1.0, 2.5, 0.3, 1.0]), "reduction": "none"},
}


@pytest.mark.parametrize("size", BYTES_PER_BLOCK)
@pytest.mark.parametrize("options", EXTRAS.values(), ids=EXTRAS)
def test_hard_negatives_weights_and_a_learnt_temperature_equal_the_eager_expression(
    options: dict[str, Any], size: int, block_bytes: Callable[[int], None]
) -> None:
    block_bytes(size)
    inputs = {
        "queries": random_rows(5, 6, seed=1),
        "keys": random_rows(8, 6, seed=2),
        "hard_negatives": random_rows(7, 6, seed=3),
        "temperature": torch.tensor([0.2], dtype=torch.float64),
    }
    if "temperature" in options:
        inputs["temperature"] = torch.tensor(options["temperature"], dtype=torch.float64)
        options = {name: value for name, value in options.items() if name != "temperature"}
    loss, gradients = loss_and_gradients(info_nce, inputs, positive_offset=3, **options)
    expected_loss, expected_gradients = loss_and_gradients(eager_info_nce, inputs, positive_offset=3, **options)
    torch.testing.assert_close(loss, expected_loss, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradients, expected_gradients, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_symmetric_is_the_mean_of_both_directions(reduction: str) -> None:
    inputs = {
        "queries": random_rows(9, 4, seed=1),
        "keys": random_rows(9, 4, seed=2),
        "temperature": torch.tensor(0.1, dtype=torch.float64),
    }
    options = {"symmetric": True, "reduction": reduction, "row_weights": torch.arange(1.0, 10.0)}
    loss, gradients = loss_and_gradients(info_nce, inputs, **options)
    expected_loss, expected_gradients = loss_and_gradients(eager_info_nce, inputs, **options)
    torch.testing.assert_close(loss, expected_loss, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradients, expected_gradients, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_gradcheck(reduction: str) -> None:
    queries, keys = random_rows(3, 4, seed=1).requires_grad_(), random_rows(5, 4, seed=2).requires_grad_()
    temperature = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    hard = random_rows(3, 4, seed=3).requires_grad_()

    def loss(queries: Tensor, keys: Tensor, temperature: Tensor, hard: Tensor) -> Tensor:
        return info_nce(
            queries,
            keys,
            temperature,
            positive_offset=1,
            hard_negatives=hard,
            hard_negative_weight=0.4,
            reduction=reduction,
        )

    assert torch.autograd.gradcheck(loss, (queries, keys, temperature, hard))


def test_shards_of_the_rows_add_up_to_the_whole() -> None:
    inputs = {"queries": random_rows(10, 6, seed=1), "keys": random_rows(10, 6, seed=2)}
    whole, (whole_queries, whole_keys) = loss_and_gradients(eager_info_nce, inputs, reduction="sum")
    loss, key_gradient = torch.zeros(()), torch.zeros_like(whole_keys)
    for start, stop in ((0, 3), (3, 4), (4, 10)):
        shard = {"queries": inputs["queries"][start:stop], "keys": inputs["keys"]}
        part, gradients = loss_and_gradients(info_nce, shard, positive_offset=start, reduction="sum")
        loss, key_gradient = loss + part, key_gradient + gradients[1]
        torch.testing.assert_close(gradients[0], whole_queries[start:stop], rtol=1e-11, atol=1e-12)
    # `loss_and_gradients` gives one number the upstream gradient 0.5, whatever the shard
    torch.testing.assert_close(loss, whole, rtol=1e-12, atol=0)
    torch.testing.assert_close(key_gradient, whole_keys, rtol=1e-11, atol=1e-12)


def error(value: Tensor, truth: Tensor) -> float:
    return float((value.double() - truth).norm() / truth.norm().clamp_min(1e-30))


@pytest.mark.parametrize("shape", [(33, 33, 40), (50, 123, 7)], ids=str)
@pytest.mark.parametrize("temperature", [0.05, 0.01])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_is_as_accurate_as_pytorch_in_the_same_dtype(
    dtype: torch.dtype, temperature: float, shape: tuple[int, int, int]
) -> None:
    rows, columns, width = shape
    keys = random_rows(columns, width, seed=2)
    queries = keys[:rows] + 1.5 * random_rows(rows, width, seed=1)  # some positives are found, some are not
    inputs = {"queries": queries.to(dtype), "keys": keys.to(dtype)}
    truth = loss_and_gradients(eager_info_nce, {k: v.double() for k, v in inputs.items()}, temperature=temperature)
    ours = loss_and_gradients(info_nce, inputs, temperature=temperature)
    eager = loss_and_gradients(eager_info_nce, inputs, temperature=temperature)
    assert ours[0].dtype == torch.float32
    assert [gradient.dtype for gradient in ours[1]] == [dtype, dtype]
    # A rounding error of a cosine, divided by the temperature, is a relative error of a probability.
    tolerance = 4 * torch.finfo(torch.float32).eps / temperature
    assert error(ours[0], truth[0]) <= error(eager[0], truth[0]) + tolerance
    for value, plain, exact in zip(ours[1], eager[1], truth[1], strict=True):
        assert error(value, exact) <= error(plain, exact) + tolerance
        assert error(value, exact) <= torch.finfo(dtype).eps + tolerance  # one rounding, at the end


def test_half_precision_gradients_keep_a_loss_scale() -> None:
    queries = random_rows(64, 16, dtype=torch.float16).requires_grad_()
    keys = random_rows(64, 16, seed=2, dtype=torch.float16)
    with torch.no_grad():
        queries *= 1000  # gradients of about 1e-6, below the normal numbers of float16
    scale = 2.0**14
    (gradient,) = torch.autograd.grad(info_nce(queries, keys) * scale, queries)
    exact_queries = queries.detach().double().requires_grad_()
    (exact,) = torch.autograd.grad(info_nce(exact_queries, keys.double()) * scale, exact_queries)
    assert error(gradient, exact) < 1e-3


def test_autocast_changes_nothing() -> None:
    inputs = {"queries": random_rows(9, 16, dtype=torch.float32), "keys": random_rows(9, 16, seed=2).float()}
    for reduction in ("mean", "none"):
        expected = loss_and_gradients(info_nce, inputs, reduction=reduction)
        with torch.autocast("cpu", torch.bfloat16):
            result = loss_and_gradients(info_nce, inputs, reduction=reduction)
        torch.testing.assert_close(result, expected, rtol=0, atol=0)


def test_statistics_are_those_of_the_matrix() -> None:
    keys, hard = random_rows(40, 5, seed=2), random_rows(30, 5, seed=3)
    queries = keys[2:32] + random_rows(30, 5, seed=1)
    cosines, hard_cosines = (
        F.normalize(queries) @ F.normalize(keys).T,
        F.normalize(queries) @ F.normalize(hard).T,
    )
    positive = torch.zeros_like(cosines, dtype=torch.bool).diagonal_scatter(torch.ones(30, dtype=torch.bool), 2)
    found = cosines.argmax(dim=1) == 2 + torch.arange(30)
    still_found = found & (hard_cosines.amax(dim=1) < cosines[positive])
    assert 0 < still_found.sum() < found.sum() < 30

    _, plain = info_nce(queries, keys, positive_offset=2, return_stats=True)
    _, stats = info_nce(queries.requires_grad_(), keys, positive_offset=2, hard_negatives=hard, return_stats=True)
    for result, accuracy in ((plain, found), (stats, still_found)):
        torch.testing.assert_close(result.positive_cosine, cosines[positive].mean())
        torch.testing.assert_close(result.negative_cosine, cosines[~positive].mean())
        torch.testing.assert_close(result.accuracy, accuracy.double().mean())
        assert not any(value.requires_grad for value in result)


def test_a_tie_is_not_a_hit_and_a_batch_of_one_has_no_negative_cosine() -> None:
    same = torch.ones(4, 8)
    _, stats = info_nce(same, same, return_stats=True)
    assert stats.accuracy == 0
    assert float(stats.negative_cosine) == pytest.approx(1)
    _, stats = info_nce(same[:1], same[:1], return_stats=True)
    assert stats.accuracy == 1
    assert stats.negative_cosine.isnan()


def test_identical_rows_give_the_logarithm_of_their_number_and_no_gradient() -> None:
    same = random_rows(1, 8, dtype=torch.float32).expand(50, 8)
    loss, gradients = loss_and_gradients(info_nce, {"queries": same, "keys": same}, temperature=0.01)
    assert float(loss) == pytest.approx(math.log(50), rel=1e-5)
    assert max(float(gradient.abs().max()) for gradient in gradients) < 1e-5


def test_nearly_certain_positives_keep_their_relative_precision() -> None:
    """1 - p would be zero in float32, and with it the loss and both gradients."""
    inputs = {
        "queries": torch.eye(4) + 0.1 * random_rows(4, 4, seed=1).float(),
        "keys": torch.eye(4) + 0.1 * random_rows(4, 4, seed=2).float(),
    }
    loss, gradients = loss_and_gradients(info_nce, inputs, temperature=0.05)
    double = {name: value.double() for name, value in inputs.items()}
    expected, expected_gradients = loss_and_gradients(eager_info_nce, double, temperature=0.05)
    assert 0 < float(expected) < 5e-8  # 1 + loss is 1 in float32
    assert error(loss, expected) < 1e-4
    for gradient, exact in zip(gradients, expected_gradients, strict=True):
        assert error(gradient, exact) < 1e-4


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16], ids=str)
def test_zero_rows_have_cosine_zero_and_no_gradient(dtype: torch.dtype) -> None:
    queries, keys = random_rows(4, 6, seed=1).to(dtype), random_rows(4, 6, seed=2).to(dtype)
    queries[1], keys[2] = 0, 0
    loss, gradients = loss_and_gradients(info_nce, {"queries": queries, "keys": keys})
    expected = eager_info_nce(queries.double(), keys.double())
    assert float(loss) == pytest.approx(float(expected), rel=1e-3)
    assert all(gradient.isfinite().all() and gradient.any() for gradient in gradients)
    assert not gradients[0][1].any() and not gradients[1][2].any()


def contrast_directly(queries: Tensor, keys: Tensor, needs: Needs | None) -> None:
    """What the operator runs, where modes that count memory and operations see inside."""
    options = Options(len(keys), 0, None, 0.0, normalize=True)
    upstream = None if needs is None else Upstream(torch.full((len(queries),), 1 / len(queries)))
    reference.contrast(queries, keys, torch.tensor(0.05), upstream, None, options, needs or Needs(*[False] * 3))


def test_memory_is_a_block_and_copies_of_the_inputs(
    block_bytes: Callable[[int], None], peak_memory: Callable[[Callable[[], Any]], int]
) -> None:
    count, width = 1024, 16
    matrix, rows = 4 * count**2, 4 * count * width
    block_bytes(matrix // 32)
    queries = random_rows(count, width, dtype=torch.float32)
    keys = random_rows(count, width, seed=2, dtype=torch.float32)
    peak = peak_memory(lambda: contrast_directly(queries, keys, Needs(True, True, True)))
    assert peak < matrix // 32 + 10 * rows
    eager = peak_memory(lambda: eager_info_nce(queries.requires_grad_(), keys).backward())
    assert eager > 2 * matrix  # the measure sees what it is to see


def addmm_flops(_: torch.Size, left: torch.Size, right: torch.Size, **__: Any) -> int:
    return int(mm_flop(left, right))


@pytest.mark.parametrize(("needs", "products"), [(None, 1), ((True, True, False), 3), ((True, False, False), 2)])
def test_no_product_is_computed_that_is_not_needed(needs: tuple[bool, bool, bool] | None, products: int) -> None:
    queries, keys = torch.randn(64, 32), torch.randn(64, 32)
    with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: addmm_flops}) as counter:
        contrast_directly(queries, keys, None if needs is None else Needs(*needs))
    # the count of the statistics (one row against one row) is far below 1%
    assert counter.get_total_flops() == pytest.approx(products * 2 * 64 * 64 * 32, rel=0.01)


def test_backward_can_be_repeated_and_the_inputs_stay_as_they_are() -> None:
    queries, keys = random_rows(5, 4).requires_grad_(), random_rows(5, 4, seed=2)
    before = queries.detach().clone(), keys.clone()
    loss = info_nce(queries, keys, normalize=False)
    first = torch.autograd.grad(loss, queries, retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(2 * loss, queries)[0], 2 * first[0])
    torch.testing.assert_close((queries.detach(), keys), before, rtol=0, atol=0)


def test_no_rows_sum_to_zero() -> None:
    queries, keys = torch.zeros(0, 4, requires_grad=True), torch.randn(3, 4, requires_grad=True)
    loss = info_nce(queries, keys, reduction="sum")
    loss.backward()
    assert loss == 0
    assert keys.grad is not None and not keys.grad.any()


ROWS = torch.zeros(4, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"queries": ROWS[0]}, "queries must be a floating-point matrix"),
        ({"keys": ROWS.long()}, "keys must be a floating-point matrix"),
        ({"keys": torch.zeros(4, 5)}, "differ in width: 3 and 5"),
        ({"keys": ROWS[:3]}, "4 queries at positive_offset=0 are not all among 3 keys"),
        ({"positive_offset": 1}, "positive_offset=1"),
        ({"positive_offset": -1}, "positive_offset=-1"),
        ({"temperature": 0.0}, "temperature must be a positive finite number"),
        ({"temperature": float("nan")}, "temperature must be a positive finite number"),
        ({"temperature": torch.ones(2)}, "temperature tensor must hold one"),
        ({"hard_negatives": torch.zeros(4, 2)}, r"hard_negatives must be a floating-point \[K, 3\]"),
        ({"hard_negatives": ROWS[:3], "hard_negative_weight": 1.0}, "there are 3"),
        ({"row_weights": torch.ones(3)}, r"row_weights must be \[4\]"),
        ({"row_weights": torch.ones(4, requires_grad=True)}, "must not require a gradient"),
        ({"keys": torch.zeros(5, 3), "symmetric": True}, "as many queries as keys"),
        ({"hard_negatives": ROWS, "symmetric": True}, "no hard_negatives"),
        ({"reduction": "average"}, "reduction must be"),
        ({"impl": "cuda"}, "impl must be one of"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        info_nce(**{"queries": ROWS, "keys": ROWS, **arguments})
