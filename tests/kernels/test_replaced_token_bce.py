from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffcse_kernels import RTDCounts, reference, replaced_token_bce
from diffcse_kernels.reference.replaced_token_bce import replaced_token_bce_backward
from torch.nn import functional as F

from tests.support.kernels.eager_bce import DEVICES, eager_bce, error, implementation, loss_and_gradients, random_case

without_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
both_implementations = pytest.mark.parametrize("impl", ["reference", pytest.param("triton", marks=without_triton)])


@pytest.mark.parametrize("size", [1, 200, 32 * 2**20], ids=["one row a block", "ragged blocks", "one block"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (37, 5), (64, 16)], ids=str)
def test_equals_the_eager_expression_in_float64(
    shape: tuple[int, int], size: int, block_bytes: Callable[[int], None]
) -> None:
    block_bytes(size)
    case = random_case(*shape)
    torch.testing.assert_close(
        loss_and_gradients(replaced_token_bce, case),
        loss_and_gradients(eager_bce, case),
        rtol=1e-12,
        atol=1e-12,
    )


def test_gradcheck() -> None:
    case = random_case(6, 4)
    fixed = {name: case.pop(name) for name in ("original_ids", "edited_ids", "mask")}
    leaves = [value.requires_grad_() for value in case.values()]
    assert torch.autograd.gradcheck(lambda h, w, b: replaced_token_bce(h, w, b, **fixed)[0], leaves)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(33, 40), (257, 63)], ids=str)
def test_is_as_accurate_as_pytorch_in_the_same_dtype(shape: tuple[int, int], dtype: torch.dtype) -> None:
    case = random_case(*shape, dtype=dtype)
    exact = {name: value.double() if value.is_floating_point() else value for name, value in case.items()}
    truth = loss_and_gradients(eager_bce, exact)
    ours, plain = loss_and_gradients(replaced_token_bce, case), loss_and_gradients(eager_bce, case)
    assert ours[0].dtype == torch.float32
    assert error(ours[0], truth[0]) <= error(plain[0], truth[0]) + 1e-6
    for value, eager, correct in zip(ours[1], plain[1], truth[1], strict=True):
        assert value.dtype == dtype
        assert error(value, correct) <= error(eager, correct) + 1e-6
        assert error(value, correct) <= torch.finfo(dtype).eps + 1e-6  # only the result is rounded to `dtype`


@both_implementations
def test_counts_of_a_case_worked_by_hand(impl: str) -> None:
    # The head reads the logit straight from the state.
    logits = torch.tensor([[2.0], [-2.0], [3.0], [-1.0], [0.0], [0.0], [5.0], [-5.0]])
    original = torch.tensor([1, 1, 1, 1, 1, 1, 1, 1])
    edited = torch.tensor([2, 2, 1, 1, 2, 1, 2, 1])
    mask = torch.tensor([True, True, True, True, True, True, False, False])
    loss, counts = implementation(impl)(
        hidden=logits,
        weight=torch.ones(1),
        bias=torch.zeros(1),
        original_ids=original,
        edited_ids=edited,
        mask=mask,
    )
    assert counts == RTDCounts(real=6, replaced=3, right_on_replaced=1, right_on_kept=2)
    assert all(count.dtype == torch.int64 and count.dim() == 0 for count in counts)
    expected = F.softplus(torch.tensor([-2.0, 2.0, 3.0, -1.0, 0.0, 0.0])).sum()
    torch.testing.assert_close(loss, expected)


@both_implementations
def test_huge_logits_give_finite_losses_and_exact_gradients(impl: str) -> None:
    logits = torch.tensor([[1000.0], [-1000.0], [1000.0], [-1000.0]])
    case = {
        "hidden": logits,
        "weight": torch.ones(1),
        "bias": torch.tensor(0.0),
        "original_ids": torch.tensor([1, 1, 1, 1]),
        "edited_ids": torch.tensor([2, 2, 1, 1]),
        "mask": torch.ones(4, dtype=torch.bool),
    }
    loss, (hidden, _, bias) = loss_and_gradients(implementation(impl), case, upstream=1.0)
    assert loss == 2000
    assert hidden.flatten().tolist() == [0, -1, 1, 0]
    assert bias == 0


@pytest.mark.parametrize(
    ("impl", "dtype", "precision"),
    [
        ("reference", torch.float32, 1e-5),
        ("reference", torch.float64, 1e-14),
        pytest.param("triton", torch.float32, 1e-5, marks=without_triton),
    ],
    ids=str,
)
@pytest.mark.parametrize("logit", [25.0, -25.0])
def test_confident_tokens_keep_the_relative_precision_of_loss_and_gradient(
    logit: float, impl: str, dtype: torch.dtype, precision: float
) -> None:
    """In float32, sigmoid(25) - 1 is zero; the gradient is -1.4e-11."""
    case = {
        "hidden": torch.tensor([[logit]], dtype=dtype),
        "weight": torch.ones(1, dtype=dtype),
        "bias": torch.zeros((), dtype=dtype),
        "original_ids": torch.tensor([1]),
        "edited_ids": torch.tensor([2]),
        "mask": torch.tensor([True]),
    }
    loss, (hidden, _, _) = loss_and_gradients(implementation(impl), case, upstream=1.0)
    exact_loss = math.log1p(math.exp(-abs(logit))) + max(-logit, 0)
    assert float(loss) == pytest.approx(exact_loss, rel=precision, abs=0)
    assert float(hidden) == pytest.approx(-1 / (1 + math.exp(logit)), rel=precision, abs=0)


@both_implementations
def test_no_token_in_the_mask_gives_zero(impl: str) -> None:
    case = random_case(5, 3, torch.float32)
    case["mask"] = torch.zeros(5, dtype=torch.bool)
    loss, gradients = loss_and_gradients(implementation(impl), case)
    assert loss == 0
    assert not any(gradient.any() for gradient in gradients)
    empty = {name: value if name in ("weight", "bias") else value[:0] for name, value in case.items()}
    loss, gradients = loss_and_gradients(implementation(impl), empty)
    assert loss == 0
    assert not any(gradient.any() for gradient in gradients)


@both_implementations
def test_autocast_changes_nothing(impl: str) -> None:
    case = random_case(20, 8, torch.float32)
    expected = loss_and_gradients(implementation(impl), case)
    with torch.autocast(DEVICES[impl], torch.bfloat16):
        result = loss_and_gradients(implementation(impl), case)
    torch.testing.assert_close(result, expected, rtol=0, atol=0)


@both_implementations
def test_operators_are_registered_as_torch_library_wants(impl: str) -> None:
    case = {name: value.to(DEVICES[impl]) for name, value in random_case(6, 5, torch.float32).items()}
    leaves = [case.pop(name).requires_grad_() for name in ("hidden", "weight", "bias")]
    for needs_gradients in (True, False):
        inputs = leaves if needs_gradients else [leaf.detach() for leaf in leaves]
        arguments = (*inputs, *case.values(), needs_gradients, impl)
        torch.library.opcheck(torch.ops.diffcse_kernels.replaced_token_bce.default, arguments)
    slopes, upstream = torch.randn(6, device=DEVICES[impl]), torch.tensor(0.7, device=DEVICES[impl])
    torch.library.opcheck(
        torch.ops.diffcse_kernels.replaced_token_bce_backward.default,
        (slopes, upstream, leaves[1].detach(), torch.bfloat16, impl),
    )


@both_implementations
def test_compiled_equals_eager(impl: str) -> None:
    case = random_case(20, 8, torch.float32)
    compiled = torch.compile(implementation(impl), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(
        loss_and_gradients(compiled, case), loss_and_gradients(implementation(impl), case), rtol=0, atol=0
    )


def test_there_is_no_second_derivative() -> None:
    case = random_case(5, 3)
    case["hidden"].requires_grad_()
    loss_squared = replaced_token_bce(**case)[0] ** 2
    (gradient,) = torch.autograd.grad(loss_squared, case["hidden"], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_nothing_is_made_for_gradients_that_nobody_wants(peak_memory: Callable[[Callable[[], Any]], int]) -> None:
    case = random_case(500, 64, torch.float32)
    case["weight"].requires_grad_()
    wanted = peak_memory(lambda: replaced_token_bce(**case))
    with torch.no_grad():
        unwanted = peak_memory(lambda: replaced_token_bce(**case))
    assert wanted - unwanted == 4 * (500 + 64)  # a slope a token, the weight's gradient


def test_backward_keeps_one_number_a_token_and_not_the_states() -> None:
    case = random_case(500, 64, torch.float32)
    case["hidden"].requires_grad_()
    saved: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        replaced_token_bce(**case)
    assert 500 <= sum(saved) < 2 * 500


def test_working_memory_is_a_block(
    block_bytes: Callable[[int], None], peak_memory: Callable[[Callable[[], Any]], int]
) -> None:
    """A bfloat16 state is read block by block: a float32 copy of all would be twice its size."""
    case = random_case(4096, 64, torch.bfloat16)
    block_bytes(16 * 1024)
    size = case["hidden"].numel() * 2
    # the operators hide from the measure what they hold inside, the functions that they run do not
    assert peak_memory(lambda: reference.replaced_token_bce(**case, needs_gradients=True)) < size + 4096 * 40
    slopes, upstream = torch.randn(4096), torch.tensor(1.0)
    backward = lambda: replaced_token_bce_backward(slopes, upstream, case["weight"], torch.bfloat16)  # noqa: E731
    assert size <= peak_memory(backward) < size + 4096 * 40


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden": torch.zeros(5)}, "hidden must be a floating-point matrix"),
        ({"weight": torch.zeros(4)}, r"weight must be \[3\]"),
        ({"bias": torch.zeros(2)}, "bias one number"),
        ({"edited_ids": torch.zeros(4)}, r"edited_ids must be \[5\]"),
        ({"mask": torch.zeros(5)}, "mask must be bool"),
        ({"impl": "cuda"}, "impl must be one of 'auto', 'triton', 'reference'"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replaced_token_bce(**{**random_case(5, 3), **changes})
