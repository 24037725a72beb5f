"""DeepSpeed's AdamW for CPUs: the numbers and the state of PyTorch's, and nothing is compiled unasked."""

from __future__ import annotations

import os
from unittest import mock

import pytest
import torch
from deepspeed.comm import comm

from diffcse_scale.engine import host_adamw, launch, offload
from diffcse_scale.engine.configuration import complete_config
from diffcse_scale.engine.engine import initialize
from diffcse_scale.engine.host_adamw import HostAdamW, is_faster
from diffcse_scale.engine.offload import describe_optimizer
from diffcse_scale.engine.optimizer import moments_of
from diffcse_scale.foundation.errors import InputError
from diffcse_scale.recipe import BatchRecipe
from diffcse_scale.recipe_file import load_recipe
from diffcse_scale.rendezvous import leave

SETTINGS = {"betas": (0.9, 0.99), "eps": 1e-6, "weight_decay": 0.1}
RECIPE = load_recipe("quickstart").model_copy(update={"batch": BatchRecipe(sentences=2)})


@pytest.fixture(scope="module", autouse=True)
def _the_group_is_left():
    """That of the engines: the next file's tests would meet it."""
    with mock.patch.dict(os.environ):
        yield
    leave()
    comm.cdb = None


class Kernels:
    """DeepSpeed's kernels in plain PyTorch: its signature, AdamW's equations."""

    def __init__(self):
        self.alive = set()

    def create_adam(self, number, lr, beta1, beta2, eps, weight_decay, is_adamw, should_log):
        assert is_adamw and not should_log
        self.alive.add(number)

    def destroy_adam(self, number):
        self.alive.remove(number)

    def adam_update(self, number, step, lr, beta1, beta2, eps, decay, correct, weight, grad, first, second):
        assert number in self.alive and correct and type(step) is int
        first.lerp_(grad, 1 - beta1)
        second.lerp_(grad.square(), 1 - beta2)
        denominator = (second / (1 - beta2**step)).sqrt() + eps
        weight.mul_(1 - lr * decay).sub_(lr / (1 - beta1**step) * first / denominator)


@pytest.fixture
def kernels(monkeypatch):
    found = Kernels()
    monkeypatch.setattr(host_adamw, "build", lambda: found)
    return found


@pytest.fixture
def no_compiler(monkeypatch):
    class Builder:
        def load(self, verbose):
            raise RuntimeError("Unable to JIT load the cpu_adam op due to ninja not being installed.")

    monkeypatch.setattr(host_adamw, "CPUAdamBuilder", Builder)


def trained(kind, steps=20):
    torch.manual_seed(0)
    weights = torch.randn(3, 100).requires_grad_()
    optimizer = kind([{"params": [weights]}], lr=0.0, **SETTINGS)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 1e-2 / (1 + step)  # as the schedule sets it
        weights.grad = torch.sin(weights.detach() * (step + 1))
        optimizer.step()
    return weights.detach(), optimizer


def compare():
    ours, optimizer = trained(HostAdamW)
    theirs, truth = trained(torch.optim.AdamW)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    (state,), (expected,) = optimizer.state.values(), truth.state.values()
    assert state.keys() == expected.keys() == {"step", *moments_of(optimizer)}
    for name, value in expected.items():
        torch.testing.assert_close(state[name], value, rtol=1e-4, atol=5e-6)  # of DeepSpeed's 1 - beta in float32


def test_numbers_and_state_are_those_of_pytorch(kernels):
    compare()
    assert not kernels.alive


@pytest.mark.slow
def test_the_real_kernels_compute_the_same_and_can_be_timed(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    try:
        host_adamw.build()
    except InputError as error:
        pytest.skip(str(error))
    compare()
    assert is_faster(numbers=1 << 16) in (True, False)


def engine_of(**changes):
    launch.start_process_group()
    offloaded = {"stage": 2, "offload_optimizer": {"device": "cpu"}}
    config = complete_config({"zero_optimization": offloaded, **changes}, RECIPE, 1)
    return initialize(torch.nn.Linear(4, 4), RECIPE, config)


def test_an_offloaded_run_that_asks_for_deepspeeds_kernel_trains_with_it(kernels):
    engine = engine_of(zero_force_ds_cpu_optimizer=True)
    before = engine.module.weight.detach().clone()
    for group in engine.optimizer.param_groups:
        group["lr"] = 0.1
    engine.backward(engine(torch.ones(2, 4)).sum())
    engine.step()
    assert isinstance(engine.basic_optimizer, HostAdamW)
    # AdamW's first step is the learning rate in every direction
    torch.testing.assert_close(before - engine.module.weight.detach(), torch.full((4, 4), 0.1), rtol=0, atol=1e-4)
    assert describe_optimizer(engine).startswith("AdamW on the host, DeepSpeed's kernel, ")


@pytest.mark.parametrize(("faster", "kind"), [(True, HostAdamW), (False, torch.optim.AdamW)])
def test_auto_takes_what_a_measurement_finds_faster(kernels, monkeypatch, faster, kind):
    monkeypatch.setattr(offload, "is_faster", lambda: faster)
    assert type(engine_of(zero_force_ds_cpu_optimizer="auto").basic_optimizer) is kind


def test_without_a_compiler_auto_takes_pytorchs_and_true_is_refused(no_compiler):
    engine = engine_of(zero_force_ds_cpu_optimizer="auto")
    assert describe_optimizer(engine).startswith("AdamW on the host, PyTorch's kernel, ")
    with pytest.raises(InputError, match=r"cannot be built here \(.*ninja not being installed.*\); leave zero_force"):
        engine_of(zero_force_ds_cpu_optimizer=True)


@pytest.mark.parametrize(
    "changes",
    [{}, {"zero_force_ds_cpu_optimizer": True, "zero_optimization": {"stage": 2}}],
    ids=["not asked for", "not offloaded"],
)
def test_nothing_is_compiled_unasked(monkeypatch, changes):
    monkeypatch.setattr(host_adamw, "build", lambda: pytest.fail("compiles"))
    assert type(engine_of(**changes).basic_optimizer) is torch.optim.AdamW


def test_another_word_than_auto_is_refused():
    with pytest.raises(InputError, match=r"zero_force_ds_cpu_optimizer = 'yes'; it is true, false or \"auto\""):
        complete_config({"zero_force_ds_cpu_optimizer": "yes"}, RECIPE, 1)
