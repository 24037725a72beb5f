"""What Triton's InfoNCE subtracts before it exponentiates: a bound where that will do, the maximum where it must.

Against float64. Tolerances: losses four roundings of the largest logit; gradients, relative to the largest absolute
value, 1e-5 in float32 and 8e-3 in bfloat16: two roundings of a logit of 100, and one of the weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from diffcse_kernels import info_nce
from torch import Tensor

from tests.support.kernels.eager_info_nce import eager_info_nce, loss_and_gradients, random_rows

pytest.importorskip("triton")
from diffcse_kernels.triton import similarity
from diffcse_kernels.triton.normed_rows import Rows
from diffcse_kernels.triton.similarity import Pair

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 8e-3}
TILE = 128  # columns of the largest tile of any dtype


def on_a_circle(cosines: list[float] | Tensor, dtype: torch.dtype) -> Tensor:
    """[N, 2]: unit vectors with these cosines to the first axis."""
    angles = torch.as_tensor(cosines, dtype=torch.float64).acos()
    return torch.stack([angles.cos(), angles.sin()], dim=1).to(DEVICE, dtype)


def check(inputs: dict[str, Tensor], loss: Callable[..., Tensor] = eager_info_nce, **options: float) -> None:
    found, gradients = loss_and_gradients(info_nce, inputs, impl="triton", **options)
    exact = {name: value.double().cpu() for name, value in inputs.items()}
    truth, true_gradients = loss_and_gradients(loss, exact, **options)
    largest_logit = 1 / options["temperature"] + abs(options.get("hard_negative_weight", 0))
    roundings = 4 * torch.finfo(torch.float32).eps * largest_logit
    assert float(found) == pytest.approx(float(truth), rel=0, abs=roundings)
    for gradient, true in zip(gradients, true_gradients, strict=True):
        assert (gradient.double().cpu() - true).abs().max() <= TOLERANCES[gradient.dtype] * true.abs().max()


def shifts(queries: Tensor, keys: Tensor, temperature: float) -> Tensor:
    scale = torch.full((1,), 1 / temperature, device=DEVICE)
    return similarity.row_shifts(Pair(*Rows.both(queries, keys, True), scale, normalized=True, positive=0)).cpu()


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("temperature", [0.02, 0.01, 0.005])
def test_rows_whose_negatives_are_all_near_lie_beside_rows_whose_are_all_far(
    temperature: float, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(similarity, "PROGRAMS", 1)  # nobody begins with a later tile
    queries = on_a_circle([1.0, -1.0, 0.0], dtype)
    far = torch.full((TILE,), -0.99, dtype=torch.float64)
    near = torch.linspace(-1, -0.3, 20, dtype=torch.float64)  # of the next tile: nearer to the first query
    keys = on_a_circle(torch.cat([torch.full((3,), -0.9), far, near]), dtype)
    check({"queries": queries, "keys": keys}, temperature=temperature)


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("length", [1e-10, 1e10])
def test_norms_that_leave_no_room_for_exponents(length: float, dtype: torch.dtype) -> None:
    # all logits near -73: with a shift of 0, as for rows of usual lengths, exponentials of 2e-32 times these norms
    queries, keys = on_a_circle([1.0, 1.0], dtype), on_a_circle([-1.0, -0.99, -0.98], dtype)
    check({"queries": queries * length, "keys": keys * length}, temperature=0.0137)


@pytest.mark.parametrize("weight", [105.0, -105.0])
def test_a_hard_negative_may_weigh_more_than_any_cosine(weight: float) -> None:
    inputs = {"queries": [1.0], "keys": [-0.95], "hard_negatives": [0.1]}
    vectors = {name: on_a_circle(cosines, torch.float32) for name, cosines in inputs.items()}
    check(vectors, against_one_negative, temperature=0.016, hard_negative_weight=weight)


def against_one_negative(
    queries: Tensor, keys: Tensor, hard_negatives: Tensor, temperature: float, hard_negative_weight: float
) -> Tensor:
    """The loss of one row by a formula that does not lose small losses."""
    positive, negative = (torch.cosine_similarity(queries, rows) for rows in (keys, hard_negatives))
    return torch.nn.functional.softplus((negative - positive) / temperature + hard_negative_weight).mean()


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_at_a_low_temperature_one_tile_of_columns_suffices_mostly(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(similarity, "PROGRAMS", 1)  # nobody begins with a later tile
    queries = random_rows(5, 16).to(DEVICE, dtype)
    keys = random_rows(3 * TILE, 16, seed=1).to(DEVICE, dtype)
    changed = keys.clone()
    changed[TILE:] = queries[0]
    torch.testing.assert_close(shifts(queries, changed, 0.01), shifts(queries, keys, 0.01), rtol=0, atol=0)
    opposite = keys.clone()
    opposite[1 : 2 * TILE] = -queries[0]
    opposite[2 * TILE :] = 0  # the largest negative, with a cosine of 0
    assert shifts(queries[:1], opposite, 0.005) == 0
    assert torch.isfinite(shifts(queries[:1], keys[:1], 0.01)).all()  # no negatives at all


def test_exponentials_of_two_million_equal_columns_add_up_to_a_float(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(similarity, "PROGRAMS", 1)  # the interpreter's
    keys = torch.ones(2**21, 1, dtype=torch.bfloat16, device=DEVICE)
    for temperature in (0.05, 0.017, 0.0134):
        shift = float(shifts(keys[:1], keys, temperature))
        assert len(keys) * math.exp(1 / temperature - shift) < torch.finfo(torch.float32).max
