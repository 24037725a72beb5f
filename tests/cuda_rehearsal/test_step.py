"""A training step on a GPU mixes no devices, and the host waits for nothing that is not listed here.

Edit, encode, project, contrast, detect; whole and chunked; two ranks, of which this is the first.
"""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor

from diffcse_scale.model.generator import Generator
from diffcse_scale.model.networks import DiffCSENetworks
from tests.support.imagined_gpu import GPU, HostWaits
from tests.support.rehearsed_step import LIBRARYS_CONSTANT, LIBRARYS_LOOK, ROWS, RehearsedStep, rehearsal, step_recipe
from tests.support.tiny_models import DECODER_FAMILIES, MASKED_LM_FAMILIES

# for what the host may wait in every step, by family, and why
MEANT = {
    "deberta-v2": {LIBRARYS_CONSTANT: "transformers makes a constant on the host in every forward pass"},
    "mpnet": {LIBRARYS_LOOK: "transformers looks whether there is padding; this family takes no packed rows"},
}
# in the first chunked step of a run, which makes sure that its second pass repeats the first
FIRST_CHUNKED_STEP = "training/chunking.py: _check_replay: _local_scalar_dense reads a number"
# a decoder's rows lie as in `padded` where the fidelity is official
DECODERS = [(family, rows) for family in DECODER_FAMILIES for rows in ("packed", "padded")]
CASES = [(family, rows) for family in MASKED_LM_FAMILIES for rows in ROWS] + DECODERS


@pytest.mark.parametrize(("family", "rows"), CASES)
def test_no_step_waits_but_where_it_is_meant(family: str, rows: str) -> None:
    meant = MEANT.get(family, {})
    with rehearsal(*meant, FIRST_CHUNKED_STEP) as gpu:
        step = RehearsedStep(gpu, family, step_recipe(rows))
        outputs = step.take(step.training_step())
        assert gpu.met == set(meant)
        outputs += step.take(step.training_step(chunked=True))
        assert gpu.met == {*meant, FIRST_CHUNKED_STEP}
    numbers = [number for output in outputs for number in (output.loss, *output.statistics.values())]
    assert all(isinstance(number, FakeTensor) and number.device == GPU for number in numbers)


def test_nor_does_any_chunked_step_after_the_first() -> None:
    with rehearsal(FIRST_CHUNKED_STEP) as gpu:
        step = RehearsedStep(gpu, "bert", step_recipe("packed"))
        chunked = step.training_step(chunked=True)
        step.take(chunked)
        gpu.met.clear()
        step.take(chunked, 2)
        assert gpu.met == set()


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["bert", "modernbert", "qwen3"])
def test_nor_in_other_precisions(family: str, precision: str) -> None:
    with rehearsal() as gpu:
        step = RehearsedStep(gpu, family, step_recipe("packed"), precision)
        step.take(step.training_step())


@pytest.mark.parametrize("views", [2, 3])
@pytest.mark.parametrize("exchange", ["gather", "ring"])
def test_nor_where_ranks_exchange_their_keys_and_hard_negatives(exchange: str, views: int) -> None:
    with rehearsal() as gpu:
        step = RehearsedStep(gpu, "bert", step_recipe("packed", f"batch.exchange={exchange}"))
        step.take(step.training_step(), views=views)


def test_a_buffer_that_stays_on_the_cpu_ends_the_step() -> None:
    with rehearsal() as gpu:
        step = RehearsedStep(gpu, "bert", step_recipe("packed"))
        norm = step.model.projection.net[1]
        norm.running_mean = torch.zeros(norm.running_mean.shape)
        with pytest.raises(RuntimeError, match="found at least two devices, c"):
            step.take(step.training_step())


def item(plain, self, *arguments):
    found = plain(self, *arguments)
    found.sum().item()
    return found


def mask(plain, self, *arguments):
    found = plain(self, *arguments)
    found[found > 0].sum()
    return found


def copy(plain, self, *arguments):
    return plain(self, *arguments) + torch.ones(1).to(GPU).to(torch.int64)


@pytest.mark.parametrize(
    ("fault", "owner", "method", "why"),
    [
        (item, DiffCSENetworks, "project", "item: _local_scalar_dense reads a number"),
        (item, Generator, "edit", "item: _local_scalar_dense reads a number"),
        (mask, DiffCSENetworks, "encode", "mask: index by a mask asks how many are chosen"),
        (copy, Generator, "edit", "copy: a copy from the host that is not non_blocking"),
    ],
)
def test_a_wait_that_is_put_into_the_step_ends_it(fault, owner, method, why, monkeypatch) -> None:
    plain = getattr(owner, method)
    monkeypatch.setattr(owner, method, lambda self, *arguments: fault(plain, self, *arguments))
    with rehearsal() as gpu:
        step = RehearsedStep(gpu, "bert", step_recipe("packed"))
        with pytest.raises(HostWaits, match=f"cuda_rehearsal/test_step.py: {why}"):
            step.take(step.training_step())
