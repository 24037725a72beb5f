"""Official DiffCSE and SimCSE checkpoints by their parameter names, from files that have their form."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from transformers import BertForMaskedLM

from diffcse_scale.foundation.errors import InputError
from diffcse_scale.model.official_checkpoint import load_official_checkpoint
from diffcse_scale.recipe import ObjectiveRecipe
from tests.support.toys import toy_backbone, toy_model

OFFICIAL = ObjectiveRecipe(fidelity="official")


def _official_state(prefix):
    """What the official program saves, dead weight included, with recognisable values."""
    model = toy_model(OFFICIAL, "batchnorm")
    state = {f"{prefix}.{k}": v + 1 for k, v in model.encoder.backbone.state_dict().items()}
    state |= {f"discriminator.{k}": v + 2 for k, v in model.discriminator.backbone.state_dict().items()}
    state |= {f"mlp.{k}": v + 3 for k, v in model.projection.state_dict().items()}
    state |= {f"electra_head.{k}": v + 4 for k, v in model.rtd_head.state_dict().items()}
    state |= {f"{prefix}.embeddings.position_ids": torch.arange(32)[None]}
    generator = BertForMaskedLM(toy_backbone().config)
    state |= {f"generator.{k}": v for k, v in generator.state_dict().items()}
    return state | {"lm_head.bias": torch.zeros(60)}


@pytest.mark.parametrize("prefix", ["bert", "roberta"])
def test_an_official_diffcse_checkpoint_is_read_whole(tmp_path, prefix):
    torch.save(_official_state(prefix), tmp_path / "pytorch_model.bin")
    model = toy_model(OFFICIAL, "batchnorm")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert load_official_checkpoint(model, tmp_path) == []
    for name, value in model.state_dict().items():
        part = name.split(".")[0]
        added = {"encoder": 1, "discriminator": 2, "projection": 3, "rtd_head": 4}[part]
        torch.testing.assert_close(value, before[name] + added)


def test_a_published_simcse_checkpoint_has_its_projection_in_the_pooler(tmp_path):
    model = toy_model(ObjectiveRecipe(rtd_weight=0), "mlp")
    state = {name: value + 1 for name, value in model.encoder.backbone.state_dict().items()}
    state |= {f"pooler.dense.{k}": v + 3 for k, v in model.projection.dense.state_dict().items()}
    save_file(state, tmp_path / "model.safetensors")
    expected = model.projection.dense.weight.detach() + 3
    assert load_official_checkpoint(model, tmp_path) == []
    torch.testing.assert_close(model.projection.dense.weight.detach(), expected)


def test_what_does_not_fit_is_refused(tmp_path):
    model = toy_model(OFFICIAL)
    with pytest.raises(InputError, match="neither"):
        load_official_checkpoint(model, tmp_path)
    save_file({"transformer.h.0.weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="no parameter of this encoder"):
        load_official_checkpoint(model, tmp_path)
    save_file(toy_backbone(width=16).state_dict(), tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="does not fit"):
        load_official_checkpoint(model, tmp_path)


MATRIX = "bert.encoder.layer.1.output.dense.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop(MATRIX), r"has no weights for encoder\.layer\.1\.output\.dense\.weight \(1 differ"),
        (lambda state: state.update({"bert.encoder.layer.2.x": torch.zeros(1)}), r"no place for: encoder\.layer\.2\.x"),
        (lambda state: state[MATRIX][0].fill_(float("nan")), "has weights that are not finite numbers: encoder"),
        (lambda state: state.update(made=[print]), "cannot be read: its .bin file holds Python objects"),
    ],
)
def test_an_encoder_that_is_not_whole_is_refused(tmp_path, change, message):
    state = _official_state("bert")
    change(state)
    torch.save(state, tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match=message):
        load_official_checkpoint(toy_model(OFFICIAL, "batchnorm"), tmp_path)
