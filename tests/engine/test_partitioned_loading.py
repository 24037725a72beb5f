"""A backbone that is partitioned while it is loaded is the one that a whole load gives, and is never held whole.

The truth is the same model built without ZeRO-3. Weights on disk and what is drawn for new parts are compared bit for
bit: partitioning moves numbers and computes none.
"""

from __future__ import annotations

from typing import Any

import deepspeed
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import BertConfig, BertForMaskedLM, BertModel, PreTrainedModel

from diffcse_scale.distributed import is_main
from diffcse_scale.engine.configuration import complete_config
from diffcse_scale.engine.engine import partitioned_loading, whole_state
from diffcse_scale.engine.launch import start_process_group
from diffcse_scale.engine.optimizer import make_optimizer
from diffcse_scale.foundation.errors import InputError
from diffcse_scale.model.backbone import load_masked_lm, load_tokenizers
from diffcse_scale.model.build import build_model
from diffcse_scale.model.networks import DiffCSENetworks
from diffcse_scale.recipe import Recipe
from diffcse_scale.recipe_file import load_recipe
from tests.support.arms import ARMS
from tests.support.memory import PeakMemory
from tests.support.ranks import run_ranks
from tests.support.tiny_models import tiny_bert, tiny_llama, tiny_tokenizer

ZERO3 = {"zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0}}
BERT = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 32}


def _masked_lm() -> PreTrainedModel:
    torch.manual_seed(0)
    return BertForMaskedLM(BertConfig(**BERT))


MODELS = {"bert": tiny_bert, "bert from a masked language model": _masked_lm, "llama": tiny_llama}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, str]:
    """Model folders by name."""
    root = tmp_path_factory.mktemp("models")
    for name, make in MODELS.items():
        make().save_pretrained(root / name)
    for folder in root.iterdir():
        tiny_tokenizer().save_pretrained(folder)
    return {folder.name: str(folder) for folder in root.iterdir()}


def _recipe(folder: str, *overrides: str) -> Recipe:
    # both ways: else a decoder could be no discriminator
    fields = (
        "model.attention=bidirectional",
        "objective.rtd_weight=0.1",
        "model.projection=batchnorm",
        "data.max_length=16",
        "evaluation.max_length=16",
        "batch.sentences=8",
    )
    return load_recipe("quickstart", [f"model.encoder={folder}", f"model.generator={folder}", *fields, *overrides])


def _build(recipe: Recipe, config: dict[str, Any]) -> DiffCSENetworks:
    start_process_group()
    with partitioned_loading(complete_config(config, recipe, 2), recipe):
        return build_model(recipe, load_tokenizers(recipe.model))


def _whole(model: nn.Module) -> dict[str, torch.Tensor]:
    """All parameters and buffers, on every rank."""
    with deepspeed.zero.GatheredParameters(list(model.parameters())):
        named = [*model.named_parameters(), *model.named_buffers()]
        return {name: value.detach().clone() for name, value in named}


def _loads(folders: dict[str, str]) -> dict[str, Any]:
    found = {}
    for name, folder in folders.items():
        whole, partitioned = _build(_recipe(folder), {}), _build(_recipe(folder), ZERO3)
        backbones = [partitioned.encoder.backbone, partitioned.discriminator.backbone]
        parts = [(p.numel(), p.ds_tensor.numel(), p.ds_numel) for b in backbones for p in b.parameters()]
        found[name] = (_whole(whole), _whole(partitioned), parts)
    for name, overrides in ARMS.items():
        recipe = _recipe(folders["bert"], *(text.replace("embedded", folders["bert"]) for text in overrides))
        found[name] = _whole(_build(recipe, ZERO3).projection)
    return found


@pytest.fixture(scope="module")
def loads(folders, tmp_path_factory):
    return run_ranks(_loads, 2, tmp_path_factory.mktemp("ranks"), folders)


@pytest.mark.parametrize("name", MODELS)
def test_every_rank_gets_the_weights_and_buffers_of_a_whole_load(loads, name):
    truth = loads[0][name][0]
    for whole, partitioned, _ in (rank[name] for rank in loads):
        assert whole.keys() == partitioned.keys() == truth.keys()
        for key, value in truth.items():
            assert torch.equal(whole[key], value) and torch.equal(partitioned[key], value), key


@pytest.mark.parametrize("arm", ARMS)
def test_arms_of_one_seed_start_from_the_projection_of_a_whole_load(loads, arm):
    pytest.importorskip("peft")
    for rank in loads:
        for name, value in rank[arm].items():
            assert torch.equal(value, loads[0]["bert"][0][f"projection.{name}"])


@pytest.mark.parametrize("name", MODELS)
def test_the_discriminator_starts_as_a_copy_of_the_encoder(loads, name):
    state = loads[0][name][1]
    for key, value in state.items():
        if key.startswith("encoder.backbone."):
            assert torch.equal(state[key.replace("encoder.", "discriminator.", 1)], value), key


@pytest.mark.parametrize("name", MODELS)
def test_a_rank_keeps_its_half_of_each_backbone(loads, name):
    for rank in loads:
        for held, part, whole in rank[name][2]:
            assert (held, part) == (0, (whole + 1) // 2)


def _around(folder: str) -> dict[str, Any]:
    model = _build(_recipe(folder), ZERO3)
    generator = load_masked_lm(folder)
    groups = make_optimizer(model, _recipe(folder, "optimizer.weight_decay=0.1")).param_groups
    state = whole_state(model.encoder.backbone)
    return {
        "decayed": sorted(len(p.ds_shape) if hasattr(p, "ds_shape") else p.ndim for p in groups[0]["params"]),
        "kept": sorted(len(p.ds_shape) if hasattr(p, "ds_shape") else p.ndim for p in groups[1]["params"]),
        "generator": {name: tuple(p.shape) for name, p in generator.named_parameters()},
        "main": is_main(),
        "state": state,
        "held": [p.numel() for p in model.encoder.backbone.parameters()],
    }


@pytest.fixture(scope="module")
def around(folders, tmp_path_factory):
    return run_ranks(_around, 2, tmp_path_factory.mktemp("ranks"), folders["bert from a masked language model"])


def test_only_matrices_are_decayed(around):
    assert set(around[0]["decayed"]) == {2} and set(around[0]["kept"]) == {1}


def test_the_generator_stays_whole(around):
    assert around[1]["generator"] == {name: tuple(p.shape) for name, p in _masked_lm().named_parameters()}


def test_only_the_main_rank_holds_what_is_exported(around, folders):
    truth = BertModel.from_pretrained(folders["bert from a masked language model"], add_pooling_layer=False)
    state = around[0]["state"]
    assert state.keys() == truth.state_dict().keys()
    assert all(torch.equal(state[name], value) for name, value in truth.state_dict().items())
    assert around[1]["state"] == {}
    assert set(around[0]["held"]) == {0}  # and is partitioned afterwards as before


def test_an_official_checkpoint_is_loaded_over_whole_weights(folders, tmp_path):
    checkpoint = tmp_path / "official"
    checkpoint.mkdir()
    weights = {f"bert.{name}": torch.full_like(w, 0.5) for name, w in tiny_bert().state_dict().items()}
    save_file(weights, checkpoint / "model.safetensors")
    for state in run_ranks(_official, 2, tmp_path, folders["bert"], str(checkpoint)):
        assert all((value == 0.5).all() for value in state.values())


def _official(folder: str, checkpoint: str) -> dict[str, torch.Tensor]:
    model = _build(_recipe(folder, f"model.checkpoint={checkpoint}"), ZERO3)
    return {name: value.detach().clone() for name, value in model.encoder.backbone.named_parameters()}


def _refused(folder: str) -> str:
    try:
        _build(_recipe(folder), {"zero_optimization": {"stage": 3, "offload": "cpu"}})
    except InputError as error:
        return str(error)
    return ""


def test_a_configuration_that_deepspeed_refuses_is_not_blamed_on_the_model(folders, tmp_path):
    for message in run_ranks(_refused, 2, tmp_path, folders["bert"]):
        assert message.startswith("DeepSpeed configuration: unknown key zero_optimization.offload")


def _refused_weights(folders: list[str]) -> list[str]:
    found = []
    for folder in folders:
        try:
            _build(_recipe(folder), ZERO3)
            found.append("")
        except InputError as error:
            found.append(str(error))
    return found


def test_damaged_weights_are_refused_by_every_rank(tmp_path):
    """Also a number that is not finite, which only the rank sees whose part it is in."""
    key, changes = "encoder.layer.1.output.dense.weight", {"missing": None, "first": (0, 0), "last": (-1, -1)}
    for name, place in changes.items():
        tiny_bert().save_pretrained(tmp_path / name)
        tiny_tokenizer().save_pretrained(tmp_path / name)
        weights = load_file(tmp_path / name / "model.safetensors")
        if place is None:
            del weights[key]
        else:
            weights[key][place] = float("nan")
        save_file(weights, tmp_path / name / "model.safetensors", metadata={"format": "pt"})
    for missing, *rest in run_ranks(_refused_weights, 2, tmp_path, [str(tmp_path / name) for name in changes]):
        assert f"has no trained weights for {key}" in missing
        assert all(f"not finite numbers: {key}" in message for message in rest)


def _loading_peak(folder: str, stage: int) -> tuple[int, int]:
    """Peak bytes of building the model, and how many its trained weights have."""
    _build(_recipe(f"{folder}/small"), ZERO3)  # what a first load imports and starts is not the model
    memory = PeakMemory()
    model = _build(_recipe(f"{folder}/large"), {"zero_optimization": {"stage": stage}})
    peak, _ = memory.read()
    memory.close()
    return peak, 4 * sum(getattr(p, "ds_numel", p.numel()) for p in model.parameters())


@pytest.mark.slow
def test_no_rank_ever_holds_the_whole_model(tmp_path):
    # 2 x 53 million parameters in matrices of 4 to 16 MB. On disk in bfloat16, as large models are: a float32 file is
    # mapped into memory and not a process's own. The bound: half of the weights, and some matrices on their way.
    large = {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16, "num_hidden_layers": 4}
    for name, sizes in (("small", {}), ("large", large)):
        model = BertModel(BertConfig(**{**BERT, "vocab_size": 3000, **sizes}), add_pooling_layer=False)
        model.bfloat16().save_pretrained(tmp_path / name)
        tiny_tokenizer().save_pretrained(tmp_path / name)
    for stage, least, most in ((2, 0.95, 1.5), (3, 0.45, 0.65)):
        for peak, whole in run_ranks(_loading_peak, 2, tmp_path, str(tmp_path), stage):
            assert least * whole < peak < most * whole, (stage, peak, whole)
