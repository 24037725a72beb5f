"""Fidelity `official` against numbers that the official program itself produced.

A folder of `manifest.json` and arrays holds inputs, intermediate values, losses and gradients of one dropout-free
training step of a toy model. `golden/` has one case; `DIFFCSE_GOLDEN` may name a folder of more. Each case is one test;
whatever it holds is compared, through the public classes. Tolerances are the deviations of the program's own float32
from float64, which the manifest records, times 4 for another order of summation (and at least 1e-5, 1e-6 for losses).

In the last test a plain derivation of the step (`official_reference.py`), itself held to the
golden numbers, makes RoBERTa cases.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from diffcse_scale.objective.objective import Objective
from tests.support.golden_case import Case, chunk_of, make_generator, make_model, read_case
from tests.support.golden_checks import check_step, compare_gradients, compare_values, official_gradients, run_step
from tests.support.official_reference import BERT, ROBERTA, Reference, random_roberta_case

FOLDERS = [Path(__file__).with_name("golden"), *map(Path, filter(None, [os.environ.get("DIFFCSE_GOLDEN")]))]
CASES = [
    (folder, name) for folder in FOLDERS for name in json.loads((folder / "manifest.json").read_text())["variants"]
]


@pytest.fixture(params=CASES, ids=[f"{name} of {folder}" for folder, name in CASES])
def case(request: pytest.FixtureRequest) -> Case:
    return read_case(*request.param)


def test_a_step_is_the_official_programs_step(case: Case) -> None:
    """Edited sentences, labels, embeddings, logits, losses, accuracies, BatchNorm statistics, gradients."""
    check_step(case)


def test_lambda_and_temperature_act_as_in_the_official_program(case: Case) -> None:
    options: dict[str, dict[str, float]] = {"lambda0.1": {"rtd_weight": 0.1}, "temp1": {"temperature": 1.0}}
    for option, change in options.items():
        output, _ = run_step(case, make_model(case, case.objective(**change)))
        expected = case.facts["option_total_loss"][option]
        assert output.loss.item() == pytest.approx(expected, abs=case.tolerance("total_loss")), option


def test_lambda_0_leaves_the_official_contrastive_gradient(case: Case) -> None:
    model = make_model(case, case.objective(rtd_weight=0.0))
    model(Objective(model.objective).step, [chunk_of(case)]).loss.backward()
    norms = case.facts["grad_norms_contrastive_only"]
    norms = {name: norm for name, norm in norms.items() if name.startswith(("encoder.", "mlp."))}
    only_norms = replace(case, groups={**case.groups, "grad": {}})
    compare_gradients(only_norms, official_gradients(model), norms)


def test_the_generator_gets_no_gradient(case: Case) -> None:
    generator = make_generator(case)
    assert not generator.edit(chunk_of(case)).requires_grad
    assert not any(parameter.requires_grad for parameter in generator.model.parameters())


class OfficialAdamW:
    """The official program's optimizer: eps is added to the square root of v *before* its bias correction."""

    def __init__(self, parameters: list[Tensor]) -> None:
        self.parameters = parameters
        self.moments = [(torch.zeros_like(parameter), torch.zeros_like(parameter)) for parameter in parameters]
        self.steps = 0

    @torch.no_grad()
    def step(self, learning_rate: float, eps: float) -> None:
        self.steps += 1
        correction = (1 - 0.999**self.steps) ** 0.5 / (1 - 0.9**self.steps)
        for parameter, (first, second) in zip(self.parameters, self.moments, strict=True):
            assert parameter.grad is not None
            first.lerp_(parameter.grad, 1 - 0.9)
            second.lerp_(parameter.grad.square(), 1 - 0.999)
            parameter -= learning_rate * correction * first / (second.sqrt() + eps)


def test_three_training_steps_have_the_official_losses(case: Case) -> None:
    facts = case.facts["train3"]
    model = make_model(case, case.objective())
    optimizer = OfficialAdamW(list(model.parameters()))
    chunk = chunk_of(case)
    edited = make_generator(case).edit(chunk)
    for number, step in enumerate(facts["steps"]):
        loss = model(Objective(model.objective).step, [chunk], [edited]).loss
        deviation = abs(step["loss"] - facts["fp64_losses"][number])
        assert loss.item() == pytest.approx(step["loss"], abs=max(4 * deviation, 1e-6)), f"step {number}"
        model.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), facts["clip"])
        assert norm.item() == pytest.approx(step["grad_norm_preclip"], rel=1e-4), f"step {number}"
        optimizer.step(step["lr"], facts["eps"])


def reference_for(case: Case) -> Reference:
    weights = {name: weight.requires_grad_(weight.is_floating_point()) for name, weight in case.weights.items()}
    family = ROBERTA if case.roberta else BERT
    return Reference(weights, family, case.manifest["config"]["heads"], case.manifest["temp"], case.manifest["lambda"])


def test_the_plain_derivation_is_the_official_program_too(case: Case) -> None:
    reference = reference_for(case)
    values = reference.step(case.groups["in"], None if case.roberta else case.groups["out"]["e_inputs"])
    values["contrastive_logits"] = values["cos_sim"] / case.manifest["temp"]
    compare_values(case, {name: value.detach() for name, value in values.items()})
    values["total_loss"].backward()
    gradients = {name: weight.grad for name, weight in reference.weights.items() if weight.grad is not None}
    compare_gradients(case, gradients, case.facts["grad_norms"])


TOY_MANIFEST: dict[str, Any] = {
    "config": {
        "hidden": 32,
        "layers": 2,
        "heads": 4,
        "intermediate": 48,
        "vocab": 90,
        "max_pos": 40,
        "generator_layers": 1,
        "roberta_ln_eps": 1e-5,
        "roberta_type_vocab": 1,
        "roberta_pad": 1,
        "cls_id": {"roberta": 0},
        "sep_id": {"roberta": 2},
        "mask_id": {"roberta": 89},
    },
    "temp": 0.05,
    "lambda": 0.05,
    "masking_ratio": 0.3,
    "lens": [12, 3, 9, 16, 5, 7],
}


def derived_roberta_case(projection: str) -> Case:
    """A RoBERTa case whose values and gradients the plain derivation computes in float64."""
    weights, batch = random_roberta_case(projection, TOY_MANIFEST, seed=7)
    case = Case("roberta", TOY_MANIFEST, {}, weights, {"in": batch, "after": {}, "eval": {}})
    reference = reference_for(case)
    values = reference.step(batch)
    values["total_loss"].backward()
    gradients = {name: weight.grad for name, weight in weights.items() if weight.grad is not None}
    norms = {name: gradient.norm().item() for name, gradient in gradients.items()}
    total = float(np.linalg.norm(list(norms.values())))
    facts = {
        "fp32_vs_fp64_max_abs": {},
        "fp32_vs_fp64_grad_max_rel": 0.0,
        "grad_norms": norms,
        "total_grad_norm": total,
        "mathematically_zero_grad_params": [name for name, norm in norms.items() if norm < 1e-10 * total],
    }
    groups = {"in": batch, "out": values, "grad": gradients, "after": {}, "eval": {}}
    groups = {group: {name: value.detach() for name, value in arrays.items()} for group, arrays in groups.items()}
    statistics = {"num_batches_tracked": torch.zeros((), dtype=torch.int64)}
    for layer, width in (("mlp.net.1", 64), ("mlp.net.4", 32)) if projection == "batchnorm" else ():
        statistics |= {"running_mean": torch.zeros(width), "running_var": torch.ones(width)}
        weights |= {f"{layer}.{name}": value for name, value in statistics.items()}
    weights = {name: weight.detach() for name, weight in weights.items()}
    return Case("roberta", TOY_MANIFEST, facts, weights, groups)


@pytest.fixture
def float64() -> Iterator[None]:
    """Networks are made in float64, whose rounding is far below the least tolerance on any processor."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("projection", ["mlp", "batchnorm"])
@pytest.mark.usefixtures("float64")
def test_roberta_differs_from_bert_as_the_official_program_has_it(projection: str) -> None:
    """Padding becomes id 0, which is `<s>` and no padding to RoBERTa: positions run on through it."""
    case = derived_roberta_case(projection)
    padding = case.groups["in"]["attention_mask"].flatten(0, 1) == 0
    assert (case.groups["out"]["e_inputs"][padding] == 0).all() and padding.any()
    assert case.groups["grad"]["discriminator.embeddings.word_embeddings.weight"][0].norm() > 0
    check_step(case)
