"""Packed rows give what padded ones give, in every family that takes them.

The truth is the padded computation, which other tests compare with each sentence alone. float64, where the two differ
by rounding only: 1e-9 of each norm; the issue's 5e-5 is for float32.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from diffcse_scale.model.attention import attend_both_ways
from diffcse_scale.model.backbone import checkpoint_activations
from diffcse_scale.model.diffcse import DiffCSE
from diffcse_scale.model.encoder import Encoder
from diffcse_scale.model.generator import Generator
from diffcse_scale.model.packing import FAMILIES, allow_packing, packs
from diffcse_scale.recipe import ObjectiveRecipe
from diffcse_scale.text.batches import Chunk
from tests.tiny_models import tiny_backbone, tiny_masked_lm
from tests.toys import toy_chunk

# attention must reach over the whole row: the tiny members of other tests see 2 to 4 tokens
WIDE = {"modernbert": {"local_attention": 64}, "mistral": {"sliding_window": 32}}
MASKED_LM = ("bert", "electra", "modernbert", "roberta", "xlm-roberta")
DECODERS = ("llama", "mistral", "qwen2", "qwen3")
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "attention_dropout": 0.0}
NO_DROPOUT |= {"embedding_dropout": 0.0, "mlp_dropout": 0.0}


def backbone(family: str, **changes: object) -> torch.nn.Module:
    network = tiny_backbone(family, vocab_size=60, **{**WIDE.get(family, {}), **NO_DROPOUT, **changes}).double()
    allow_packing(network)
    return network


def ragged() -> tuple[Chunk, Chunk, torch.Tensor]:
    """The same sentences padded and packed, and their edited ids."""
    chunk, edited = toy_chunk()
    return chunk, replace(chunk, real=chunk.attention_mask.flatten().nonzero().flatten()), edited


def assert_equal(one: torch.Tensor, other: torch.Tensor, tolerance: float = 1e-9) -> None:
    # the absolute part is for what is zero but for rounding: the gradient of a key's bias
    assert float((one.detach() - other.detach()).norm()) <= tolerance * float(other.detach().norm()) + 1e-13


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_that_is_named_takes_packed_rows(family):
    if family == "distilbert":  # a generator only: it has another way of naming its sizes
        return
    assert packs(backbone(family).config, 14)


@pytest.mark.parametrize("family", [*MASKED_LM, *DECODERS])
@pytest.mark.parametrize("pooling", ["mean", "last", "first_last_mean"])
def test_embeddings_and_their_gradients_are_those_of_padded_rows(family, pooling):
    padded, packed, _ = ragged()
    encoder = Encoder(backbone(family), pooling)
    found = []
    for chunk in (padded, packed):
        encoder.zero_grad()
        h = encoder(chunk.input_ids.flatten(0, 1), chunk.attention_mask.flatten(0, 1), chunk.real)
        (h * torch.linspace(-1, 1, h.numel(), dtype=h.dtype).view_as(h)).sum().backward()
        found.append([h.detach(), *(p.grad for p in encoder.parameters() if p.grad is not None)])
    for one, other in zip(*found, strict=True):
        assert_equal(one, other)


def test_a_decoder_that_was_opened_sees_both_ways():
    padded, packed, _ = ragged()
    network = backbone("qwen3")
    closed = Encoder(network, "mean")(packed.input_ids.flatten(0, 1), packed.attention_mask.flatten(0, 1), packed.real)
    attend_both_ways(network)
    h = [
        Encoder(network, "mean")(chunk.input_ids.flatten(0, 1), chunk.attention_mask.flatten(0, 1), chunk.real)
        for chunk in (padded, packed)
    ]
    assert_equal(h[1], h[0])
    assert float((h[1] - closed).norm()) > 1e-3 * float(closed.norm())


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("family", MASKED_LM)
def test_the_objective_and_its_gradients_are_those_of_padded_rows(family, checkpointing):
    padded, packed, edited = ragged()
    network = backbone(family)
    if checkpointing:
        checkpoint_activations(network)
    model = DiffCSE(network, ObjectiveRecipe(rtd_weight=0.3), projection="batchnorm").double().train()
    found = []
    for chunk in (padded, packed):
        model.zero_grad()
        output = model([chunk], [edited])
        output.loss.backward()
        found.append([output.loss, output.rtd, output.rtd_counts.double(), *(p.grad for p in model.parameters())])
    for one, other in zip(*found, strict=True):
        assert_equal(one, other)


@pytest.mark.parametrize("family", [*MASKED_LM, "distilbert"])
def test_the_generator_writes_the_same_tokens(family):
    padded, packed, _ = ragged()
    sizes = {"dim": 24, "n_layers": 2, "n_heads": 2, "hidden_dim": 32, "vocab_size": 60, "max_position_embeddings": 40}
    if family == "distilbert":
        from transformers import DistilBertConfig, DistilBertForMaskedLM

        torch.manual_seed(0)
        model = DistilBertForMaskedLM(DistilBertConfig(**sizes, initializer_range=0.5)).eval()
    else:
        model = tiny_masked_lm(family, vocab_size=60, **WIDE.get(family, {}))
    allow_packing(model)
    assert packs(model.config, 14)
    generator = Generator(model, "sampled", [0, 2], seed=3)
    edited = generator.edit(padded)
    assert torch.equal(generator.edit(packed), edited)
    assert not torch.equal(edited, padded.input_ids)


def test_no_layer_sees_padding():
    _, packed, edited = ragged()
    model = DiffCSE(backbone("bert").float(), ObjectiveRecipe())
    tokens = []
    for network in (model.encoder.backbone, model.discriminator.backbone):
        for layer in network.encoder.layer:
            layer.intermediate.register_forward_hook(lambda module, inputs, output: tokens.append(output.shape[:2]))
    model([packed], [edited])
    assert tokens == [(1, int(packed.attention_mask.sum()))] * 4


def test_rows_longer_than_a_window_of_attention_stay_padded():
    padded, packed, _ = ragged()
    network = backbone("modernbert", local_attention=4)
    assert not packs(network.config, 14) and packs(network.config, 2)
    h = [
        Encoder(network, "cls")(chunk.input_ids.flatten(0, 1), chunk.attention_mask.flatten(0, 1), chunk.real)
        for chunk in (padded, packed)
    ]
    assert torch.equal(h[0], h[1])


def test_what_a_family_cannot_do_it_is_not_asked_for():
    network = tiny_backbone("deberta-v2")
    allow_packing(network)
    assert not packs(network.config, 14)
