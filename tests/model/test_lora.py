"""Adapters on a frozen encoder. The truth is the encoder with its adapters, as it was trained."""

from __future__ import annotations

import itertools
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer

from diffcse_scale.engine.configuration import complete_config
from diffcse_scale.engine.optimizer import make_optimizer
from diffcse_scale.export import export_sentence_transformer
from diffcse_scale.foundation.errors import InputError
from diffcse_scale.model.backbone import checkpoint_activations, load_backbone
from diffcse_scale.model.build import build_model
from diffcse_scale.model.encoder import Encoder, encode_sentences
from diffcse_scale.model.lora import add_adapters, save_merged
from diffcse_scale.recipe import LoraRecipe, Recipe
from diffcse_scale.recipe_file import load_recipe
from diffcse_scale.text.tokenizers import Tokenizers
from tests.support.tiny_models import FAMILIES, SENTENCE, tiny_backbone, tiny_tokenizer

pytest.importorskip("peft")
LORA = LoraRecipe(rank=2, alpha=4, dropout=0.0)
SENTENCES = [SENTENCE, "a dog", "the cat runs"]


def trained(backbone, lora=LORA):
    """With adapters as after some training: away from zero."""
    add_adapters(backbone, lora)
    generator = torch.Generator().manual_seed(0)
    for parameter in backbone.parameters():
        if parameter.requires_grad:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    return backbone


def vectors(backbone):
    return encode_sentences(Encoder(backbone, "mean"), tiny_tokenizer(), SENTENCES, max_length=16)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_exported_model_gives_the_vectors_that_were_trained(family, tmp_path):
    """float32, merged: to 1e-5, on values of the order of 1; the frozen weights stay bit for bit what they were."""
    base = tiny_backbone(family).state_dict()
    backbone = trained(tiny_backbone(family))
    before = vectors(backbone)
    export_sentence_transformer(backbone, tiny_tokenizer(), "mean", 16, tmp_path / "out")
    exported = load_backbone(str(tmp_path / "out"))
    assert exported.state_dict().keys() == base.keys()
    np.testing.assert_allclose(vectors(exported), before, rtol=0, atol=1e-5)
    for name, parameter in backbone.named_parameters():
        assert parameter.requires_grad == (".lora_" in name), name
        if not parameter.requires_grad:
            assert torch.equal(parameter, base[name.replace(".base_layer", "")]), name
    assert np.array_equal(vectors(backbone), before)
    assert np.abs(vectors(tiny_backbone(family)) - before).max() > 1e-2


@pytest.mark.parametrize("export", ["merged", "adapter"])
def test_sentence_transformers_loads_either_export(export, tmp_path):
    tiny_backbone("bert").save_pretrained(tmp_path / "base")
    backbone = trained(load_backbone(str(tmp_path / "base")).eval())
    export_sentence_transformer(backbone, tiny_tokenizer(), "mean", 16, tmp_path / "out", adapter=export == "adapter")
    assert (tmp_path / "out" / "adapter_model.safetensors").exists() == (export == "adapter")
    assert (tmp_path / "out" / "model.safetensors").exists() == (export == "merged")
    exported = SentenceTransformer(str(tmp_path / "out"), device="cpu", local_files_only=True)
    np.testing.assert_allclose(exported.encode(SENTENCES), vectors(backbone), rtol=0, atol=1e-5)


def test_adapters_begin_as_nothing_and_are_all_that_is_trained():
    backbone = tiny_backbone("qwen3")
    before = vectors(backbone)
    add_adapters(backbone, LORA)
    assert np.array_equal(vectors(backbone), before)
    names = [name for name, parameter in backbone.named_parameters() if parameter.requires_grad]
    assert names and all(".lora_" in name for name in names)
    # all linear layers: four of attention and three of the MLP, in each of two layers, two matrices each
    assert len(names) == 2 * 7 * 2
    (group,) = make_optimizer(backbone, load_recipe("quickstart")).param_groups
    assert len(group["params"]) == len(names)


@pytest.mark.parametrize("family", ["bert", "modernbert", "qwen3"])
def test_a_base_in_bfloat16_keeps_adapters_and_export_in_float32(family, tmp_path):
    backbone = trained(tiny_backbone(family), LORA.model_copy(update={"base": "bfloat16"}))
    dtypes = {parameter.requires_grad: parameter.dtype for parameter in backbone.parameters()}
    assert dtypes == {True: torch.float32, False: torch.bfloat16}
    assert all(buffer.dtype == torch.float32 for name, buffer in backbone.named_buffers() if "inv_freq" in name)
    save_merged(backbone, tmp_path)
    assert {tensor.dtype for tensor in load_file(tmp_path / "model.safetensors").values()} == {torch.float32}
    plain = load_backbone(str(tmp_path)).eval()
    # bfloat16 has 8 bits: products of the training pass against those of float32
    np.testing.assert_allclose(vectors(plain), vectors(backbone), rtol=0, atol=0.1)


def test_merged_matrices_leave_the_device_one_by_one(tmp_path, monkeypatch):
    """A device that trains 4-bit weights has no room for all of them in float32."""
    made, left, cpu = [], [], torch.Tensor.cpu
    monkeypatch.setattr(
        torch.Tensor, "float", lambda tensor, make=torch.Tensor.float: (made.append(1), make(tensor))[1]
    )
    monkeypatch.setattr(torch.Tensor, "cpu", lambda tensor: (left.append(len(made)), cpu(tensor))[1])
    backbone = trained(tiny_backbone("llama"), LORA.model_copy(update={"base": "bfloat16"}))
    made.clear()
    save_merged(backbone, tmp_path)
    steps = [after - before for before, after in itertools.pairwise([0, *left])]
    assert len(left) == len(load_file(tmp_path / "model.safetensors"))
    assert max(steps) <= 3  # a matrix and the two of its adapter


def test_recomputed_activations_change_no_gradient_of_an_adapter():
    gradients = []
    for checkpointing in (False, True):
        backbone = tiny_backbone("llama").train()
        if checkpointing:
            checkpoint_activations(backbone)
        trained(backbone)
        torch.manual_seed(0)
        h = Encoder(backbone, "last")(torch.arange(5, 15)[None], torch.ones(1, 10, dtype=torch.long))
        (h * torch.linspace(-1, 1, 24)).sum().backward()
        gradients.append({name: p.grad for name, p in backbone.named_parameters() if p.requires_grad})
        assert all(float(gradient.abs().max()) > 0 for gradient in gradients[-1].values())
    torch.testing.assert_close(*gradients, atol=1e-6, rtol=1e-5)


def test_a_base_of_4_bits_is_exported_as_it_computes(tmp_path):
    """To 0.1 of values of the order of 1: the training pass multiplies in bfloat16, the export in float32."""
    pytest.importorskip("bitsandbytes")
    tiny_backbone("qwen2", hidden_size=64, intermediate_size=128).save_pretrained(tmp_path / "base")
    recipe = load_recipe(
        "quickstart",
        [f"model.encoder={tmp_path / 'base'}", "objective.rtd_weight=0", "model.lora={rank: 2, alpha: 2, base: nf4}"],
    )
    backbone = build_model(recipe, Tokenizers.shared(tiny_tokenizer())).encoder.backbone
    assert {p.dtype for p in backbone.parameters() if p.requires_grad} == {torch.float32}
    for name, parameter in backbone.named_parameters():
        if parameter.requires_grad:
            parameter.data = torch.full_like(parameter, 0.05)
        elif name.endswith("proj.base_layer.weight"):
            assert parameter.dtype == torch.uint8
    computed = vectors(backbone)  # a call first: it may change how the weights lie in memory
    save_merged(backbone, tmp_path / "out")
    np.testing.assert_allclose(vectors(load_backbone(str(tmp_path / "out"))), computed, rtol=0, atol=0.1)


def _recipe(folder, **lora) -> Recipe:
    settings = {"rank": 2, **lora}
    tiny_backbone("bert").save_pretrained(folder)
    return load_recipe("quickstart", [f"model.encoder={folder}", f"model.lora={settings}"])


@pytest.mark.parametrize("base", ["float32", "bfloat16"])
def test_the_discriminator_is_the_whole_base_without_adapters(base, tmp_path):
    model = build_model(_recipe(tmp_path, base=base), Tokenizers.shared(tiny_tokenizer()))
    expected = tiny_backbone("bert").state_dict()
    found = model.discriminator.backbone.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert all(parameter.requires_grad for parameter in model.discriminator.parameters())
    assert {p.dtype for p in model.encoder.parameters() if not p.requires_grad} == {getattr(torch, base)}


def test_layers_that_are_not_there_are_named(tmp_path):
    with pytest.raises(InputError, match=r"model\.lora\.target_modules: .*c_attn"):
        build_model(_recipe(tmp_path, target_modules=["c_attn"]), Tokenizers.shared(tiny_tokenizer()))


def test_what_is_not_installed_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(InputError, match=r"model\.lora needs peft: pip install 'diffcse-scale\[lora\]'"):
        build_model(_recipe(tmp_path), Tokenizers.shared(tiny_tokenizer()))
    monkeypatch.setattr("diffcse_scale.model.lora.find_spec", lambda name: None)
    with pytest.raises(InputError, match="nf4 needs bitsandbytes"):
        build_model(_recipe(tmp_path, base="nf4"), Tokenizers.shared(tiny_tokenizer()))


def test_4_bits_are_refused_where_they_cannot_work(tmp_path):
    recipe = _recipe(tmp_path, base="nf4")
    with pytest.raises(InputError, match="ZeRO-3 cannot partition the 4-bit weights"):
        complete_config({"zero_optimization": {"stage": 3}}, recipe, 1)
    complete_config({"zero_optimization": {"stage": 2}}, recipe, 1)
