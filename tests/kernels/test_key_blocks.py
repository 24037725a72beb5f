"""Blocks of keys, one after another, make the loss and the gradients of all keys at once.

Triton's kernels run on a GPU or in Triton's interpreter; the reference on the CPU. The truth is float64.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from diffcse_kernels import info_nce, key_blocks
from diffcse_kernels.key_blocks import block_gradients, block_logsumexp
from diffcse_kernels.reference import key_blocks as reference
from torch import Tensor

from tests.support.kernels.faults import with_fault

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
TRITON_DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TRITON_DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SCALE = torch.tensor(20.0)
# rows, keys of the block, width, the block's first positive
SHAPES = {
    "one pair": (1, 1, 5, 0),
    "one row": (1, 9, 4, 3),
    "square": (17, 17, 8, 0),
    "positives inside": (13, 70, 33, 29),
    "no positives": (70, 13, 16, None),
    "no keys": (4, 0, 8, None),
    "no rows": (0, 5, 8, 2),
}
BYTES_PER_BLOCK = (1, 1000, 32 * 2**20)  # single rows; a few rows and a ragged last block; everything at once


def unit_rows(count: int, width: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(count, width, generator=generator, dtype=torch.float64))


def exact(inputs: tuple[Tensor, Tensor], offset: int | None) -> list[Tensor]:
    """In float64 with the whole block: logsumexp, positives and largest; both gradients as `results` asks for them."""
    queries, keys = (rows.double() for rows in inputs)
    logits = SCALE.double() * queries @ keys.T
    positives = torch.full((len(queries),), -torch.inf, dtype=torch.float64)
    if offset is not None:
        own = torch.arange(len(queries)), offset + torch.arange(len(queries))
        positives = logits[own]
        logits = logits.index_put(own, torch.tensor(-torch.inf, dtype=torch.float64))
    largest = logits.amax(dim=1) if len(keys) else torch.full_like(positives, -torch.inf)
    weights = (logits - shifts(largest)[:, None]).exp() * factors(len(queries))[:, None]
    return [logits.logsumexp(dim=1), positives, largest, weights @ keys, weights.T @ queries]


def shifts(largest: Tensor) -> Tensor:
    """As a loss chooses them, but for finite ones where a row has no negatives."""
    return largest.masked_fill(largest.isinf(), 0)


def factors(rows: int) -> Tensor:
    return torch.linspace(0.5, 2, rows, dtype=torch.float64)


def results(
    module: Any, inputs: tuple[Tensor, Tensor], offset: int | None, device: str = "cpu", **impl: str
) -> list[Tensor]:
    """What both functions make of the inputs on `device`, back on the CPU."""
    dtype = torch.promote_types(inputs[0].dtype, torch.float32)
    rows, scale = [values.to(device) for values in inputs], SCALE.to(device, dtype)
    of_loss = [values.to(device, dtype) for values in (shifts(exact(inputs, offset)[2]), factors(len(inputs[0])))]
    forward = module.block_logsumexp(*rows, scale, offset, **impl)
    gradients = module.block_gradients(*rows, scale, *of_loss, offset, **impl)
    assert all(value.dtype == dtype for value in (*forward, *gradients))
    return [value.cpu() for value in (*forward, *gradients)]


def error(found: list[Tensor], truth: list[Tensor]) -> float:
    """Largest deviation of finite numbers, relative to the largest of them in each tensor; infinities must agree."""
    errors = [0.0]
    for value, true in zip(found, truth, strict=True):
        assert value.shape == true.shape
        finite = true.isfinite()
        if not torch.equal(value.isfinite(), finite) or not torch.equal(value[~finite].double(), true[~finite]):
            return torch.inf
        if finite.any() and true[finite].any():
            errors.append(float((value.double() - true)[finite].abs().max() / true[finite].abs().max()))
    return max(errors)


def tolerance(dtype: torch.dtype) -> float:
    """Four roundings of a cosine, multiplied by the scale."""
    return 4 * float(SCALE) * torch.finfo(torch.promote_types(dtype, torch.float32)).eps


def triton_tolerance(dtype: torch.dtype) -> float:
    """Of gradients, whose weights are rounded to the rows' dtype before they are multiplied."""
    return tolerance(dtype) + (torch.finfo(dtype).eps if dtype != torch.float32 else 0)


@pytest.mark.parametrize("size", BYTES_PER_BLOCK)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_equals_the_whole_block_in_float64(
    dtype: torch.dtype, shape: tuple[int, int, int, int | None], size: int, block_bytes: Callable[[int], None]
) -> None:
    rows, columns, width, offset = shape
    block_bytes(size)
    inputs = unit_rows(rows, width, seed=1).to(dtype), unit_rows(columns, width, seed=2).to(dtype)
    assert error(results(key_blocks, inputs, offset), exact(inputs, offset)) <= tolerance(dtype)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("dtype", TRITON_DTYPES, ids=str)
@needs_triton
@pytest.mark.device
def test_triton_equals_the_whole_block_in_float64(dtype: torch.dtype, shape: tuple[int, int, int, int | None]) -> None:
    rows, columns, width, offset = shape
    inputs = unit_rows(rows, width, seed=1).to(dtype), unit_rows(columns, width, seed=2).to(dtype)
    found, truth = results(key_blocks, inputs, offset, TRITON_DEVICE, impl="triton"), exact(inputs, offset)
    assert error(found[:3], truth[:3]) <= tolerance(dtype)
    assert error(found[3:], truth[3:]) <= triton_tolerance(dtype)


@needs_triton
@pytest.mark.device
def test_triton_takes_rows_and_keys_of_different_dtypes() -> None:
    for dtypes in ((torch.bfloat16, torch.float32), (torch.float32, torch.float16), (torch.float16, torch.bfloat16)):
        queries, keys = (unit_rows(9, 8, seed).to(dtype) for seed, dtype in enumerate(dtypes))
        found = results(key_blocks, (queries, keys), 0, TRITON_DEVICE, impl="triton")
        assert error(found, exact((queries, keys), 0)) <= tolerance(torch.float32)


@pytest.mark.parametrize("dtype", TRITON_DTYPES, ids=str)
@needs_triton
@pytest.mark.device
def test_triton_takes_rows_of_any_length(dtype: torch.dtype) -> None:
    queries, keys = (unit_rows(9, 8, seed) * length for seed, length in enumerate((100.0, 0.01)))
    inputs = queries.to(dtype), keys.to(dtype)
    found = results(key_blocks, inputs, 0, TRITON_DEVICE, impl="triton")
    assert error(found, exact(inputs, 0)) <= triton_tolerance(dtype)


MASKED_SHAPES = {name: SHAPES[name] for name in ("one pair", "positives inside", "no positives", "no keys", "no rows")}
OF_ROWS, OF_KEYS = torch.arange(280).reshape(70, 4)[:, ::2] % 9, torch.arange(210).reshape(70, 3)[:, 1:] % 13


def masked_results(impl: str, inputs: tuple[Tensor, Tensor], offset: int | None, device: str = "cpu") -> list[Tensor]:
    """As `results`, with two ids a row and thresholds that leave out some keys; in float64 exactly for "exact"."""
    rows, columns = (len(values) for values in inputs)
    ids = {"query_ids": OF_ROWS[:rows] * 2**40, "key_ids": OF_KEYS[:columns] * 2**40}
    thresholds = torch.linspace(-3, 8, rows, dtype=torch.float64)
    dtype = torch.float64 if impl == "exact" else torch.promote_types(inputs[0].dtype, torch.float32)
    of_loss = torch.full_like(thresholds, 20.0), factors(rows)
    if impl != "exact":
        queries, keys, scale, *vectors = (
            values.to(device, values.dtype if values.dim() == 2 else dtype)
            for values in (*inputs, SCALE, thresholds, *of_loss)
        )
        options = {name: values.to(device) for name, values in ids.items()}
        options |= {"thresholds": vectors[0], "impl": impl, "positive_offset": offset}
        forward = block_logsumexp(queries, keys, scale, **options)
        return [value.cpu() for value in (*forward, *block_gradients(queries, keys, scale, *vectors[1:], **options))]
    queries, keys = (values.double() for values in inputs)
    logits = SCALE.double() * queries @ keys.T
    is_positive = torch.zeros(logits.shape, dtype=torch.bool)
    if offset is not None:
        is_positive[torch.arange(rows), offset + torch.arange(rows)] = True
    positives = logits[is_positive] if offset is not None else torch.full((rows,), -torch.inf, dtype=torch.float64)
    alike = (ids["query_ids"][:, None] == ids["key_ids"][None]).any(dim=-1)
    logits = logits.masked_fill(is_positive | alike | (logits > thresholds[:, None]), -torch.inf)
    largest = logits.amax(dim=1) if columns else torch.full_like(positives, -torch.inf)
    weights = (logits - of_loss[0][:, None]).exp() * of_loss[1][:, None]
    return [logits.logsumexp(dim=1), positives, largest, weights @ keys, weights.T @ queries]


@pytest.mark.parametrize("size", BYTES_PER_BLOCK)
@pytest.mark.parametrize("shape", MASKED_SHAPES.values(), ids=MASKED_SHAPES)
def test_ids_and_thresholds_leave_keys_out(
    shape: tuple[int, int, int, int | None], size: int, block_bytes: Callable[[int], None]
) -> None:
    rows, columns, width, offset = shape
    block_bytes(size)
    inputs = unit_rows(rows, width, seed=1), unit_rows(columns, width, seed=2)
    found, truth = masked_results("reference", inputs, offset), masked_results("exact", inputs, offset)
    assert error(found, truth) <= tolerance(torch.float64)


@pytest.mark.parametrize("shape", MASKED_SHAPES.values(), ids=MASKED_SHAPES)
@pytest.mark.parametrize(
    "dtype", [torch.float32, *(pytest.param(dtype, marks=pytest.mark.slow) for dtype in TRITON_DTYPES[1:])], ids=str
)
@needs_triton
def test_ids_and_thresholds_leave_keys_out_in_triton(
    dtype: torch.dtype, shape: tuple[int, int, int, int | None]
) -> None:
    rows, columns, width, offset = shape
    inputs = unit_rows(rows, width, seed=1).to(dtype), unit_rows(columns, width, seed=2).to(dtype)
    found, truth = masked_results("triton", inputs, offset, TRITON_DEVICE), masked_results("exact", inputs, offset)
    assert error(found[:3], truth[:3]) <= tolerance(dtype)
    assert error(found[3:], truth[3:]) <= triton_tolerance(dtype)


@needs_triton
@pytest.mark.device
def test_triton_takes_rows_strip_by_strip(monkeypatch: pytest.MonkeyPatch) -> None:
    from diffcse_kernels.triton import strips

    monkeypatch.setattr(strips, "WORKSPACE_BYTES", 1)  # as few rows at once as a tile has
    inputs = unit_rows(150, 4, seed=1).float(), unit_rows(170, 4, seed=2).float()
    found = results(key_blocks, inputs, 12, TRITON_DEVICE, impl="triton")
    assert error(found, exact(inputs, 12)) <= tolerance(torch.float32)


def joined_blocks(queries: Tensor, blocks: Sequence[Tensor], own: int, offset: int, **impl: str) -> list[Tensor]:
    """Sum of the losses and both gradients, made as `key_blocks` says; block `own` holds all positives."""
    scale = SCALE.to(queries.device, torch.promote_types(queries.dtype, torch.float32))
    offsets = [offset if number == own else None for number in range(len(blocks))]
    pairs = list(zip(blocks, offsets, strict=True))
    parts = [block_logsumexp(queries, block, scale, positive, **impl) for block, positive in pairs]
    negatives = torch.stack([part[0] for part in parts]).logsumexp(dim=0)
    excess = negatives - parts[own][1]
    largest = torch.stack([part[2] for part in parts]).amax(dim=0)
    missed = scale * torch.sigmoid(excess)
    factors = missed * (largest - negatives).exp()
    grad_qs, grad_ks = zip(
        *(block_gradients(queries, block, scale, largest, factors, positive, **impl) for block, positive in pairs),
        strict=True,
    )
    positives = slice(offset, offset + len(queries))
    grad_qs[own].sub_(missed[:, None] * blocks[own][positives])
    grad_ks[own][positives] -= missed[:, None] * queries
    return [torch.logaddexp(torch.zeros_like(excess), excess).sum(), torch.stack(grad_qs).sum(0), torch.cat(grad_ks)]


def whole(queries: Tensor, keys: Tensor, offset: int) -> list[Tensor]:
    """The same from `info_nce` in float64."""
    leaves = [rows.double().clone().requires_grad_() for rows in (queries, keys)]
    loss = info_nce(*leaves, 1 / float(SCALE), positive_offset=offset, normalize=False, reduction="sum")
    return [loss.detach(), *torch.autograd.grad(loss, leaves)]


def blocks_and_queries() -> tuple[Tensor, list[Tensor]]:
    """Six queries, whose positives lie in the third of four blocks, from its second key on."""
    keys = unit_rows(17, 8, seed=2)
    queries = torch.nn.functional.normalize(keys[4:10] + unit_rows(6, 8, seed=1))
    return queries, list(keys.split([3, 0, 9, 5]))


def test_blocks_one_after_another_are_info_nce() -> None:
    queries, blocks = blocks_and_queries()
    truth = whole(queries, torch.cat(blocks), 4)
    assert error(joined_blocks(queries, blocks, own=2, offset=1), truth) <= tolerance(torch.float64)


@pytest.mark.parametrize("dtype", TRITON_DTYPES, ids=str)
@needs_triton
@pytest.mark.device
def test_blocks_one_after_another_are_info_nce_in_triton(dtype: torch.dtype) -> None:
    queries, blocks = blocks_and_queries()
    truth = whole(queries.to(dtype), torch.cat(blocks).to(dtype), 4)
    queries, blocks = queries.to(TRITON_DEVICE, dtype), [block.to(TRITON_DEVICE, dtype) for block in blocks]
    found = [value.cpu() for value in joined_blocks(queries, blocks, own=2, offset=1, impl="triton")]
    assert error(found, truth) <= triton_tolerance(dtype)


FAULTS = {
    "the positive stays among the negatives": ("positive_column.fill_(-torch.inf)", "positive_column.clone()"),
    "the positive has a weight": (
        "weights.diagonal(positive_offset + rows.start)[: len(weights)].zero_()",
        "weights.diagonal()",
    ),
    "the positives of later rows are looked for beside the first": (
        "weights.diagonal(positive_offset + rows.start)",
        "weights.diagonal(positive_offset)",
    ),
    "the scale is missing in the gradients": ("weights = (q[rows] * scale) @ k.T", "weights = q[rows] @ k.T"),
    "the factors are missing in one gradient": ("q[rows] * row_factors", "q[rows]"),
    "only the last rows count": ("grad_k.addmm_(weights.T,", "torch.mm(weights.T, out=grad_k, mat2="),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_each_planted_fault_is_noticed(fault: str, tmp_path: Path, block_bytes: Callable[[int], None]) -> None:
    block_bytes(1000)
    inputs = unit_rows(13, 33, seed=1), unit_rows(70, 33, seed=2)
    assert error(results(reference, inputs, 29), exact(inputs, 29)) <= tolerance(torch.float64)
    faulty = with_fault(reference, *FAULTS[fault], tmp_path)
    assert error(results(faulty, inputs, 29), exact(inputs, 29)) > 1e-3


def test_memory_is_two_strips_of_the_matrix_and_copies_of_the_inputs(
    block_bytes: Callable[[int], None], peak_memory: Callable[[Callable[[], Any]], int]
) -> None:
    count, width = 1024, 16
    rows, strip = 4 * count * width, 4 * count**2 // 32
    block_bytes(strip)
    queries, keys = torch.randn(count, width), torch.randn(count, width)
    vector = torch.zeros(count)
    assert peak_memory(lambda: block_logsumexp(queries, keys, SCALE, 0)) < 2 * strip + 4 * rows
    assert peak_memory(lambda: block_gradients(queries, keys, SCALE, vector, vector, 0)) < 2 * strip + 6 * rows


def test_autocast_changes_nothing_and_nothing_has_a_graph() -> None:
    inputs = unit_rows(9, 16, seed=1).float().requires_grad_(), unit_rows(9, 16, seed=2).float().requires_grad_()
    expected = results(key_blocks, inputs, 0)
    with torch.autocast("cpu", torch.bfloat16):
        found = results(key_blocks, inputs, 0)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert not any(value.requires_grad for value in found)


ROWS = torch.zeros(4, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"queries": ROWS[0]}, "queries must be a floating-point matrix"),
        ({"keys": ROWS.long()}, "keys must be a floating-point matrix"),
        ({"keys": torch.zeros(4, 5)}, "differ in width: 3 and 5"),
        ({"positive_offset": 1}, "positives of 4 queries at positive_offset=1 are not all among the block's 4 keys"),
        ({"positive_offset": -1}, "positive_offset=-1"),
        ({"shifts": torch.zeros(3)}, r"shifts must be \[4\], not \[3\]"),
        ({"factors": torch.zeros(4, 1)}, r"factors must be \[4\]"),
        ({"thresholds": torch.zeros(3)}, r"thresholds must be \[4\]"),
        ({"key_ids": torch.arange(4)}, "need query_ids and key_ids both"),
        ({"impl": "fast"}, "impl must be one of"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(arguments: dict[str, Any], message: str) -> None:
    vectors = {"shifts": torch.zeros(4), "factors": torch.zeros(4)}
    with pytest.raises(ValueError, match=message):
        block_gradients(**{"queries": ROWS, "keys": ROWS, "scale": SCALE, **vectors, **arguments})
    if arguments.keys() & vectors.keys():
        return
    with pytest.raises(ValueError, match=message):
        block_logsumexp(**{"queries": ROWS, "keys": ROWS, "scale": SCALE, **arguments})
