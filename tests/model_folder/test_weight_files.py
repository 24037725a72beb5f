"""The plan of the files of weights is what `save_pretrained` then writes, and is made without a number."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModel, MixtralConfig, MixtralModel

from diffcse_scale.model_folder import weight_files
from diffcse_scale.model_folder.layout import is_model_file
from diffcse_scale.model_folder.weight_files import in_several_files, save_encoder, save_without_weights
from tests.support.tiny_models import FAMILIES, tiny_backbone, tiny_bert

SMALL = 6000  # bytes of a file: the tiny models have several, and matrices larger than one


@pytest.fixture(autouse=True)
def small_files(monkeypatch):
    monkeypatch.setattr(weight_files, "FILE_BYTES", SMALL)


def files_of_weights(folder: Path) -> dict[str, list[str]]:
    """Names of the tensors in each safetensors file."""
    found = {}
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            found[file.name] = sorted(tensors.keys())
    return found


@pytest.mark.parametrize("loaded", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_plan_has_the_files_of_save_pretrained_and_the_rest_is_byte_for_byte_the_same(family, loaded, tmp_path):
    encoder = tiny_backbone(family)
    if loaded:  # transformers then remembers how it has renamed weights
        encoder.save_pretrained(tmp_path / "before")
        encoder = AutoModel.from_pretrained(tmp_path / "before")
    encoder.save_pretrained(tmp_path / "truth", max_shard_size=SMALL)
    plan = save_without_weights(encoder, tmp_path / "plan")
    truth = files_of_weights(tmp_path / "truth")
    assert len(truth) > 2 and all(is_model_file(name) for name in truth)
    assert {file: sorted(names) for file, names in plan.items()} == truth
    state = encoder.state_dict()
    for file, names in plan.items():
        with safe_open(tmp_path / "truth" / file, "pt") as tensors:
            assert all(torch.equal(tensors.get_tensor(name), state[ours]) for name, ours in names.items())
    rest = {path.name: path.read_bytes() for path in (tmp_path / "truth").iterdir() if path.name not in truth}
    assert {path.name: path.read_bytes() for path in (tmp_path / "plan").iterdir()} == rest
    assert rest.keys() >= {"config.json", "model.safetensors.index.json"}


def test_there_is_no_plan_for_a_family_whose_weights_are_converted_when_they_are_saved(tmp_path):
    """Mixtral holds the experts of a layer as one tensor; its files have a matrix for each."""
    encoder = MixtralModel(
        MixtralConfig(
            vocab_size=32,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            intermediate_size=24,
            num_local_experts=2,
        )
    )
    assert save_without_weights(encoder, tmp_path / "plan") is None
    save_encoder(encoder, tmp_path / "truth", None)
    names = {name for names in files_of_weights(tmp_path / "truth").values() for name in names}
    assert not names <= encoder.state_dict().keys()


def test_a_plan_leaves_transformers_as_it_was(tmp_path):
    encoder = tiny_bert()
    save_without_weights(encoder, tmp_path / "plan")
    encoder.save_pretrained(tmp_path / "after", max_shard_size=SMALL)
    assert files_of_weights(tmp_path / "after") and not files_of_weights(tmp_path / "plan")


def test_a_network_that_is_not_partitioned_has_one_writer():
    assert not in_several_files(tiny_bert())
