"""Compiled layers compute what eager ones do, dropout included, with a few programs for any number of tokens.

The truth is eager mode with the same seeds, in float64: 1e-9 of each norm, or 1e-5 where a family computes parts of a
layer in float32 whatever it was asked for.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch._dynamo.utils import counters

from diffcse_scale.foundation.errors import InputError
from diffcse_scale.model.backbone import checkpoint_activations
from diffcse_scale.model.compiled import check_compile, compile_networks, has_compiler
from diffcse_scale.model.generator import Generator
from diffcse_scale.model.networks import DiffCSENetworks
from diffcse_scale.model.packing import allow_packing
from diffcse_scale.objective.objective import Objective
from diffcse_scale.recipe import ObjectiveRecipe
from tests.support.comparisons import assert_equal
from tests.support.tiny_models import WIDE, tiny_backbone, tiny_masked_lm
from tests.support.toys import toy_chunk

needs_compiler = pytest.mark.skipif(not has_compiler(), reason="there is no C++ compiler")


@pytest.fixture(autouse=True)
def _nothing_compiled_before():
    torch._dynamo.reset()
    counters.clear()


def _packed(sentences, step):
    chunk, edited = toy_chunk(sentences, seed=step)
    return replace(chunk, real=chunk.attention_mask.flatten().nonzero().flatten(), seed=step), edited


def _compared(family, programs, checkpointing=False, tolerance=1e-9, pooling="cls"):
    network = tiny_backbone(family, vocab_size=60, **WIDE.get(family, {})).double()
    allow_packing(network)
    if checkpointing:
        checkpoint_activations(network)
    eager = DiffCSENetworks(network, ObjectiveRecipe(rtd_weight=0.3), pooling).double().train()
    compiled = copy.deepcopy(eager)
    compile_networks(compiled, None)
    for step, sentences in enumerate([6, 9, 4, 12, 7, 10, 5, 8]):
        chunk, edited = _packed(sentences, step)
        found = []
        for model in (eager, compiled):
            model.zero_grad()
            output = model(Objective(model.objective).step, [chunk], [edited])
            output.loss.backward()
            gradients = [p.grad for p in model.parameters() if p.grad is not None]
            found.append([output.loss, output.statistics["rtd"], *gradients])
        for one, other in zip(*found, strict=True):
            assert_equal(one, other, tolerance)
    assert not torch.equal(eager.encode(chunk), eager.eval().encode(chunk))  # dropout is on
    assert 0 < counters["stats"]["unique_graphs"] <= programs
    assert not counters["graph_break"]
    # evaluation is left as it is
    assert torch.equal(eager.eval().encode(chunk), compiled.eval().encode(chunk))


@pytest.mark.slow
@needs_compiler
def test_the_objective_and_its_gradients_are_those_of_eager_mode():
    _compared("bert", programs=1)


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize(("family", "tolerance", "pooling"), [("modernbert", 1e-9, "cls"), ("qwen3", 1e-5, "last")])
def test_other_families(family, tolerance, pooling):
    _compared(family, programs=4, tolerance=tolerance, pooling=pooling)


@needs_compiler
@pytest.mark.slow
def test_activations_can_be_recomputed():
    _compared("bert", programs=1, checkpointing=True)


@needs_compiler
@pytest.mark.slow
def test_the_generator_writes_the_same_tokens():
    model = tiny_masked_lm("bert", vocab_size=60, initializer_range=0.5).double()
    allow_packing(model)
    eager = Generator(model, "sampled", [0, 1, 2], seed=0)
    compiled = copy.deepcopy(eager)
    compile_networks(DiffCSENetworks(tiny_backbone("bert"), ObjectiveRecipe(rtd_weight=0)), compiled)
    for step, sentences in enumerate([6, 9]):
        chunk, _ = _packed(sentences, step)
        assert torch.equal(eager.edit(chunk), compiled.edit(chunk))
    assert counters["stats"]["unique_graphs"] == 1


def test_what_cannot_be_compiled_is_said(monkeypatch):
    with pytest.raises(InputError, match="The layers of MPNetModel cannot be compiled"):
        compile_networks(DiffCSENetworks(tiny_backbone("mpnet"), ObjectiveRecipe(rtd_weight=0)), None)
    with pytest.raises(InputError, match="ZeRO-3 partitions"):
        check_compile(3)
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(InputError, match="needs a C\\+\\+ compiler, and there is no no-such-compiler here"):
        check_compile(2)
