"""One step through the public classes, and its comparison with whatever a golden case holds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from diffcse_scale.model.encoder import Encoder
from diffcse_scale.model.networks import DiffCSENetworks
from diffcse_scale.objective.objective import Objective, StepOutput
from diffcse_scale.objective.replaced_tokens import ReplacedTokens
from tests.support.golden_case import LOSSES, OUR_NAMES, Case, chunk_of, make_generator, make_model


def run_step(case: Case, model: DiffCSENetworks) -> tuple[StepOutput, dict[str, Tensor]]:
    """One forward pass, and the values inside it under the names of the golden arrays."""
    inside: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        return lambda module, inputs, output: inside.__setitem__(name, output)

    for name in ("encoder", "projection", "discriminator"):
        model.get_submodule(name).register_forward_hook(keep(name))
    chunk = chunk_of(case)
    edited = make_generator(case).edit(chunk)
    output = model(Objective(model.objective).step, [chunk], [edited])

    ids, mask, edited = (tensor.flatten(0, 1) for tensor in (chunk.input_ids, chunk.attention_mask, edited))
    z = inside["projection"].unflatten(0, chunk.input_ids.shape[:2])
    cosine = F.cosine_similarity(z[:, None, 0], z[None, :, 1], dim=-1)
    values = {
        "z_before_mlp": inside["encoder"].unflatten(0, chunk.input_ids.shape[:2]),
        "z1": z[:, 0],
        "z2": z[:, 1],
        "cos_sim": cosine,
        "contrastive_logits": cosine / case.manifest["temp"],
        "e_inputs": edited,
        "replaced": (edited != ids).long() * mask,
        "disc_last_hidden": inside["discriminator"],
        "rtd_logits": F.linear(inside["discriminator"], model.rtd_head.weight, model.rtd_head.bias),
        "contrastive_loss": output.statistics["contrastive"],
        "rtd_loss": output.statistics["rtd"],
        "total_loss": output.loss,
    }
    return output, {name: value.detach() for name, value in values.items()}


def compare_values(case: Case, values: dict[str, Tensor]) -> None:
    compared = 0
    for name, expected in case.groups["out"].items():
        if name == "gen_argmax":  # before the first token is restored and padding set to 0: held by e_inputs
            continue
        if expected.is_floating_point():
            error = (values[name] - expected).abs().max().item()
            assert error <= case.tolerance(name), f"{name}: {error:.2e} > {case.tolerance(name):.2e}"
        else:
            assert torch.equal(values[name], expected), name
        compared += 1
    assert compared >= len(LOSSES)


def compare_counts(case: Case, output: StepOutput) -> None:
    facts = case.facts
    statistics = {name: value.item() for name, value in output.statistics.items()}
    real, replaced, on_replaced, on_kept = (statistics[name] for name in ReplacedTokens.statistics)
    assert (real, replaced) == (facts["n_real"], facts["n_replaced"])
    assert (on_replaced + on_kept) / real == pytest.approx(facts["electra_acc"])
    assert on_replaced / replaced == pytest.approx(facts["electra_rep_acc"])
    assert on_kept / (real - replaced) == pytest.approx(facts["electra_fix_acc"])
    assert statistics["positive_cosine"] == pytest.approx(facts["scalars"]["pos_avg"], abs=case.tolerance("cos_sim"))
    assert statistics["negative_cosine"] == pytest.approx(facts["scalars"]["neg_avg"], abs=case.tolerance("cos_sim"))


def official_gradients(model: DiffCSENetworks) -> dict[str, Tensor]:
    """Gradients by official name."""
    gradients = {}
    for name, parameter in model.named_parameters():
        theirs, ours = next((theirs, ours) for theirs, ours in OUR_NAMES.items() if name.startswith(ours))
        assert parameter.grad is not None, f"{name} has no gradient"
        gradients[theirs + name.removeprefix(ours)] = parameter.grad
    return gradients


def compare_gradients(case: Case, gradients: dict[str, Tensor], norms: dict[str, float]) -> None:
    """Every stored gradient, relative to its norm, and every stored norm."""
    facts, arrays = case.facts, case.groups["grad"]
    relative = max(4 * facts["fp32_vs_fp64_grad_max_rel"], 1e-5)
    zero = set(facts["mathematically_zero_grad_params"])
    absolute = 1e-6 * max(1.0, facts["total_grad_norm"])
    assert gradients.keys() == norms.keys()
    assert arrays.keys() <= gradients.keys()
    for name, gradient in gradients.items():
        if name in zero:
            assert gradient.norm() <= absolute, f"{name} should have no gradient but for rounding"
            continue
        assert gradient.norm().item() == pytest.approx(norms[name], rel=relative), name
        if name in arrays:
            error = (gradient - arrays[name]).norm() / arrays[name].norm()
            assert error <= relative, f"gradient of {name}: {error:.2e} > {relative:.2e}"


def compare_embeddings(case: Case, model: DiffCSENetworks) -> None:
    """Evaluation-mode embeddings of the first views under the poolings that both programs have."""
    model.load_state_dict(make_model(case, case.objective()).state_dict())  # the running statistics before the step
    model.eval()
    ids, mask = (case.groups["in"][name][:, 0] for name in ("input_ids", "attention_mask"))
    poolings = {"mlp_only_train": "cls", "pool_cls_before_pooler": "cls", "pool_avg": "mean"}
    poolings["pool_avg_first_last"] = "first_last_mean"
    with torch.no_grad():
        values = {name: Encoder(model.encoder.backbone, how)(ids, mask) for name, how in poolings.items()}
        values["with_mlp"] = model.projection(values["mlp_only_train"])
    for name, expected in case.groups["eval"].items():
        if name != "pool_avg_top2":  # a pooling of the official program that the project does not have
            torch.testing.assert_close(values[name], expected, rtol=0, atol=case.tolerance("z_before_mlp"), msg=name)


def check_step(case: Case) -> None:
    model = make_model(case, case.objective())
    output, values = run_step(case, model)
    compare_values(case, values)
    if "electra_acc" in case.facts:
        compare_counts(case, output)
    output.loss.backward()
    if "grad_norms" in case.facts:
        compare_gradients(case, official_gradients(model), case.facts["grad_norms"])
    buffers = dict(model.projection.named_buffers())
    for name, expected in case.groups["after"].items():
        found = buffers[name.removeprefix("mlp.")]
        torch.testing.assert_close(found, expected, rtol=0, atol=case.tolerance("z1"), msg=name)
    compare_embeddings(case, model)
