"""Sizes that only a GPU can run: element counts beyond 2^31, memory, repeatability.

Against the reference in float32 on the same device. Tolerance, relative to the largest value: 1e-2, a few roundings of
the weights to bfloat16.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffcse_kernels import info_nce
from torch import Tensor

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def needs_a_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


def rows(count: int, width: int, seed: int) -> Tensor:
    generator = torch.Generator("cuda").manual_seed(seed)
    return torch.randn(count, width, generator=generator, device="cuda", dtype=torch.bfloat16)


def gradients(queries: Tensor, keys: Tensor, **options: Any) -> list[Tensor]:
    leaves = [queries.detach().requires_grad_(), keys.detach().requires_grad_()]
    loss = info_nce(*leaves, **options)
    return [loss.detach(), *torch.autograd.grad(loss, leaves)]


def error(value: Tensor, truth: Tensor) -> float:
    return float((value.float() - truth.float()).abs().max() / truth.float().abs().max())


@pytest.mark.parametrize(("count", "width"), [(50_000, 64), (20_000, 1024), (4096, 768)])
@pytest.mark.parametrize("temperature", [0.05, 0.01])
def test_large_batches_equal_the_reference(count: int, width: int, temperature: float) -> None:
    queries = rows(count, width, 0)
    keys = queries + rows(count, width, 1)
    found = gradients(queries, keys, temperature=temperature, impl="triton")
    expected = gradients(queries.float(), keys.float(), temperature=temperature, impl="reference")
    assert error(found[0], expected[0]) < 1e-4
    assert error(found[1], expected[1]) < 1e-2
    assert error(found[2], expected[2]) < 1e-2


def test_inputs_of_more_than_two_to_the_31_elements() -> None:
    keys = rows(1_100_000, 2048, 0)
    first = len(keys) - 300
    queries = keys[first:] + rows(300, 2048, 1)
    _, stats = info_nce(queries, keys, positive_offset=first, impl="triton", return_stats=True)
    assert stats.accuracy == 1
    expected = torch.nn.functional.cosine_similarity(queries.float(), keys[first:].float()).mean()
    assert error(stats.positive_cosine, expected) < 1e-3


def test_memory_is_a_strip_and_the_gradients_not_the_matrix() -> None:
    count, width = 65_536, 768
    queries, keys = rows(count, width, 0).requires_grad_(), rows(count, width, 1).requires_grad_()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    info_nce(queries, keys, impl="triton").backward()
    gradient_bytes = 2 * count * width * 2
    assert torch.cuda.max_memory_allocated() - before - gradient_bytes < 1.3e9  # the matrix in bfloat16 has 8.6e9


def test_two_runs_agree_to_the_bit() -> None:
    queries, keys = rows(5000, 768, 0), rows(5000, 768, 1)
    first = gradients(queries, keys, impl="triton")
    second = gradients(queries, keys, impl="triton")
    torch.testing.assert_close(first, second, rtol=0, atol=0)
