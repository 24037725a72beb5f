"""What the trainer hands to the kernels: z as the networks have it, uncopied, and nothing is lost by that."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from diffcse_scale.objective import sharded_info_nce as module
from diffcse_scale.objective.objective import Objective
from diffcse_scale.recipe import ObjectiveRecipe
from tests.support.toys import toy_chunk, toy_model

WIDTH = 32
BFLOAT16, AUTOCAST, FLOAT32 = "bfloat16 weights", "bfloat16 products", "float32"


class Operator(TorchDispatchMode):
    """Keeps the queries and columns of each call of the kernels' operator."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Tensor, Tensor]] = []

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        if function is torch.ops.diffcse_kernels.info_nce.default:
            self.calls.append((arguments[0], arguments[1]))
        return function(*arguments, **(options or {}))


@contextmanager
def computed_in(precision: str) -> Iterator[None]:
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == AUTOCAST):
        yield


def calls(projection: str, precision: str, views: int = 2, exchange: Any = "gather", **objective: Any) -> Operator:
    """The operator's in a step forward and backward, which leaves gradients everywhere."""
    recipe = ObjectiveRecipe(**{"rtd_weight": 0.5, **objective})
    model = toy_model(recipe, projection)
    if precision == BFLOAT16:
        model.bfloat16()
    with Operator() as operator, computed_in(precision):
        model(Objective(recipe, exchange).step, *([part] for part in toy_chunk(views=views))).loss.backward()
    assert all(parameter.grad is not None for parameter in model.encoder.backbone.parameters())
    return operator


@pytest.mark.parametrize("views", [2, 3])
@pytest.mark.parametrize(
    ("projection", "precision", "dtype"),
    [
        *((projection, FLOAT32, torch.float32) for projection in ("batchnorm", "mlp", "none")),
        *((projection, BFLOAT16, torch.bfloat16) for projection in ("batchnorm", "mlp", "none")),
        ("batchnorm", AUTOCAST, torch.bfloat16),
        ("mlp", AUTOCAST, torch.bfloat16),
    ],
)
def test_the_kernels_get_strided_rows_in_the_dtype_that_the_networks_compute_in(projection, precision, dtype, views):
    ((queries, columns),) = calls(projection, precision, views).calls
    assert queries.dtype == columns.dtype == dtype
    assert queries.stride() == (views * WIDTH, 1)  # rows of the views' matrix, not a copy of them
    assert views > 2 or columns.stride() == (views * WIDTH, 1)


@pytest.mark.parametrize("changes", [{"loss_precision": "float32"}, {"fidelity": "official"}])
@pytest.mark.parametrize("precision", [BFLOAT16, AUTOCAST])
def test_a_recipe_may_ask_for_float32(precision, changes):
    for projection in ("batchnorm", "mlp"):
        ((queries, columns),) = calls(projection, precision, **changes).calls
        assert queries.dtype == columns.dtype == torch.float32


def test_the_ring_multiplies_and_sends_what_it_is_given(monkeypatch):
    seen = []
    product = module.block_logsumexp

    def noted(queries: Tensor, block: Tensor, *others: Any, **options: Any) -> Any:
        seen.append((queries.dtype, block.dtype))
        return product(queries, block, *others, **options)

    monkeypatch.setattr(module, "block_logsumexp", noted)
    assert not calls("batchnorm", AUTOCAST, exchange="ring").calls
    assert seen == [(torch.bfloat16, torch.bfloat16)]


@pytest.mark.parametrize("precision", [BFLOAT16, AUTOCAST])
def test_z_in_bfloat16_moves_loss_and_gradients_by_no_more_than_the_networks_own_rounding(precision):
    """The truth is float64. That of the networks in bfloat16 with the loss in float32 is what there was to lose."""
    recipes = {name: ObjectiveRecipe(rtd_weight=0.5, loss_precision=name) for name in ("model", "float32")}

    def outcome(recipe: ObjectiveRecipe, precision: str, dtype: torch.dtype) -> dict[str, Tensor]:
        model = toy_model(recipe).to(dtype)
        with computed_in(precision):
            output = model(Objective(recipe).step, *([part] for part in toy_chunk(sentences=32)))
        output.loss.backward()
        assert all(value.dtype in (torch.float32, torch.float64) for value in output.statistics.values())
        gradient = torch.cat([p.grad.double().flatten() for p in model.parameters() if p.grad is not None])
        return {"loss": output.statistics["contrastive"].double(), "gradient": gradient}

    truth = outcome(recipes["float32"], "float64", torch.float64)
    dtype = torch.bfloat16 if precision == BFLOAT16 else torch.float32
    lost = {name: outcome(recipe, precision, dtype) for name, recipe in recipes.items()}
    for name in ("loss", "gradient"):
        model, float32 = (float((lost[kind][name] - truth[name]).norm() / truth[name].norm()) for kind in recipes)
        assert 0 < model < 1.1 * float32 + 1e-3, name
