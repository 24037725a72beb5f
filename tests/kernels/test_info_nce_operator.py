"""InfoNCE as operators of PyTorch: opcheck, compiling, and which gradients are asked for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffcse_kernels import info_nce, reference
from torch import Tensor

from tests.support.kernels.eager_info_nce import loss_and_gradients, random_rows


def test_only_gradients_that_backward_will_ask_for_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def record(*arguments: Any) -> Any:
        asked.append((arguments[3] is not None, tuple(arguments[6])))
        return contrast(*arguments)

    contrast = reference.contrast
    monkeypatch.setattr("diffcse_kernels.reference.info_nce.contrast", record)
    queries, keys = torch.randn(6, 4, requires_grad=True), torch.randn(6, 4, requires_grad=True)
    info_nce(queries, keys.detach()).backward()
    info_nce(queries.detach(), keys, reduction="none").sum().backward()
    with torch.no_grad():
        info_nce(queries, keys)
    nothing = (False, False, False)
    assert asked == [
        (True, (True, False, False)),
        (False, nothing),
        (True, (False, True, False)),
        (True, nothing),
    ]


IDS = torch.arange(12).reshape(6, 2), torch.arange(4, 18).reshape(7, 2)  # the last two columns have none


def operator_arguments(case: dict[str, Any]) -> tuple[Any, ...]:
    """What the public function hands to `diffcse_kernels::info_nce`."""
    queries, keys = (random_rows(4, count, seed=count, dtype=torch.float32).T for count in (6, 9))
    if not case.get("transposed"):
        queries, keys = queries.contiguous(), keys.contiguous()
    queries, keys = queries.requires_grad_(), keys.requires_grad_()
    coefficients = None if case.get("reduction") == "none" else torch.full((6,), 0.5)
    needs = (coefficients is not None,) * 2 + (bool(case.get("learnt")),)
    temperature = torch.tensor(0.1, requires_grad=bool(case.get("learnt")))
    offset = case.get("positive_offset", 0)
    return (
        queries,
        keys,
        temperature,
        coefficients,
        *case.get("ids", (None, None)),
        9,
        offset,
        None,
        0.0,
        case.get("normalize", True),
        case.get("excluded", []),
        case.get("margin"),
        case.get("multiple_positives", False),
        *needs,
        "reference",
    )


@pytest.mark.parametrize(
    "case",
    [
        {},
        {"reduction": "none", "positive_offset": 2},
        {"normalize": False, "learnt": True},
        {"transposed": True},
        {"transposed": True, "normalize": False},
        pytest.param({"ids": IDS, "excluded": [2, 3], "margin": 0.1}, marks=pytest.mark.slow),
        {"ids": IDS, "multiple_positives": True, "reduction": "none"},
    ],
    ids=str,
)
def test_the_operators_keep_their_promises_to_pytorch(case: dict[str, Any]) -> None:
    arguments = operator_arguments(case)
    torch.library.opcheck(torch.ops.diffcse_kernels.info_nce.default, arguments)
    queries, keys, temperature, _, *options, impl = arguments
    plain = [tensor.detach() for tensor in (queries, keys, temperature)]
    needs = (True, bool(case.get("transposed")), True)
    of_logsumexp = torch.ones(6 if case.get("reduction") == "none" else 0)
    backward = (torch.ones(6), of_logsumexp, *plain, *options[:-3], *needs, impl)
    torch.library.opcheck(torch.ops.diffcse_kernels.info_nce_backward.default, backward)
    scaling = (plain[0], torch.tensor(3.0), torch.bfloat16)
    torch.library.opcheck(torch.ops.diffcse_kernels.scaled_gradient.default, scaling)


MASKED = {"query_ids": torch.arange(6) // 2, "key_ids": torch.arange(6), "margin": 0.2, "symmetric": True}


@pytest.mark.parametrize("options", [{}, {"reduction": "none"}, {"return_stats": True}, MASKED], ids=str)
def test_compiles_into_one_graph_with_the_same_result(options: dict[str, Any]) -> None:
    def step(queries: Tensor, keys: Tensor, temperature: Tensor) -> Tensor:
        result = info_nce(queries * 2, keys, temperature, **options)
        return result[0] + result[1].accuracy if options.get("return_stats") else result.sum()

    inputs = {
        "queries": random_rows(6, 4, dtype=torch.float32),
        "keys": random_rows(6, 4, seed=1, dtype=torch.float32),
        "temperature": torch.tensor(0.1),
    }
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(loss_and_gradients(compiled, inputs), loss_and_gradients(step, inputs), rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_inductor_takes_transposed_rows(reduction: str) -> None:
    def step(queries: Tensor, keys: Tensor) -> Tensor:
        return info_nce(queries.T, keys.T, reduction=reduction).sum()

    inputs = {name: random_rows(4, 6, seed=seed, dtype=torch.float32) for seed, name in enumerate(("queries", "keys"))}
    compiled = torch.compile(step, fullgraph=True)
    torch.testing.assert_close(loss_and_gradients(compiled, inputs), loss_and_gradients(step, inputs))


def test_a_second_derivative_is_refused() -> None:
    queries, keys = random_rows(5, 4).requires_grad_(), random_rows(5, 4, seed=1)
    for reduction in ("mean", "none"):
        loss = info_nce(queries, keys, reduction=reduction).square().sum()
        (gradient,) = torch.autograd.grad(loss, queries, create_graph=True)
        with pytest.raises(RuntimeError, match="no autograd formula was registered"):
            gradient.sum().backward()
