"""A real run, exported: the same vectors in every library, the trained projection beside the model, a card in it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
import yaml
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoTokenizer

from diffcse_scale.checkpoints.resharding import load_weights
from diffcse_scale.embedded.grammar import training_sentences
from diffcse_scale.export.command import ExportOptions, export_model
from diffcse_scale.model.projection import make_projection
from tests.support.devices import tolerance
from tests.support.launch import ROOT, launch
from tests.support.toy_world import write_toy_world

pytestmark = pytest.mark.slow

SENTENCES = [*training_sentences(40, seed=11), " ".join(training_sentences(6, seed=12))]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy world's recipe, with a checkpoint after the first of two evaluations."""
    folder = tmp_path_factory.mktemp("export")
    recipe = {**write_toy_world(folder), "max_steps": 5, "checkpoint_every": 4}
    (folder / "toy.yaml").write_text(yaml.safe_dump(recipe))
    return folder


def trained(world: Path, stage: int) -> Path:
    config = ROOT / "ds_configs" / f"zero{stage}.json"
    run = world / f"zero{stage}"
    done = launch("--deepspeed_config", str(config), "--recipe", str(world / "toy.yaml"), "--output", str(run))
    assert done.returncode == 0, done.stdout
    return run


@pytest.fixture(scope="module")
def run(world: Path) -> Path:
    return trained(world, 2)


@pytest.mark.device
def test_vectors_agree_in_sentence_transformers_transformers_and_onnx(run: Path, tmp_path: Path) -> None:
    export_model(run, tmp_path / "out", ExportOptions(onnx=True))
    expected = SentenceTransformer(str(tmp_path / "out"), device="cpu").encode(SENTENCES)

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    model = AutoModel.from_pretrained(tmp_path / "out").eval()
    session = onnxruntime.InferenceSession(tmp_path / "out" / "onnx" / "model.onnx")
    tokens = tokenizer(SENTENCES, padding=True, truncation=True, max_length=32, return_tensors="pt")
    with torch.no_grad():
        plain = model(**tokens).last_hidden_state[:, 0].numpy()
    (vectors,) = session.run(["last_hidden_state"], {e.name: tokens[e.name].numpy() for e in session.get_inputs()})

    np.testing.assert_allclose(plain, expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(vectors[:, 0], expected, rtol=0, atol=1e-5)
    untrained = AutoModel.from_pretrained(run.parent / "model")(**tokens).last_hidden_state[:, 0].detach().numpy()
    assert np.abs(untrained - expected).max() > 1e-3


def test_the_projection_kept_with_the_best_encoder_is_that_of_its_step(run: Path) -> None:
    found = load_file(run / "best" / "step-00000004" / "projection.safetensors")
    network = torch.nn.ModuleDict({"projection": make_projection("batchnorm", found["net.0.weight"].shape[1])})
    load_weights(network, run / "checkpoints" / "step-00000004")
    expected = network["projection"].state_dict()

    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
    assert not torch.equal(found["net.1.running_mean"], torch.zeros_like(found["net.1.running_mean"]))


def test_encode_gives_the_trained_z(run: Path, tmp_path: Path) -> None:
    export_model(run, tmp_path / "out", ExportOptions(projection=True))
    h = SentenceTransformer(str(run / "model"), device="cpu").encode(SENTENCES)
    projection = make_projection("batchnorm", h.shape[1])
    projection.load_state_dict(load_file(run / "projection.safetensors"))

    with torch.no_grad():
        expected = projection.eval()(torch.from_numpy(h)).numpy()
    np.testing.assert_allclose(
        SentenceTransformer(str(tmp_path / "out"), device="cpu").encode(SENTENCES), expected, rtol=0, atol=1e-5
    )


@pytest.mark.device
def test_the_model_holds_the_encoder_and_its_card_and_no_more(run: Path) -> None:
    assert sorted(path.name for path in (run / "model").iterdir()) == [
        ".diffcse-scale.json", "1_Pooling", "README.md", "config.json", "config_sentence_transformers.json",
        "curves.png", "model.safetensors", "modules.json", "sentence_bert_config.json", "tokenizer.json",
        "tokenizer_config.json",
    ]  # fmt: skip
    names = set(load_file(run / "model" / "model.safetensors"))
    assert names == set(AutoModel.from_pretrained(run.parent / "model", add_pooling_layer=False).state_dict())
    card = (run / "model" / "README.md").read_text()
    result = json.loads((run / "result.json").read_text())
    assert f"{result['best']['dev_spearman']:.2f} |" in card
    assert "not recorded" not in card
    for secret in (str(run), str(run.parent), str(Path.home())):
        assert secret not in card


@pytest.mark.device
def test_under_zero_3_the_projection_is_gathered_from_all_ranks(world: Path, run: Path) -> None:
    partitioned = trained(world, 3)

    found, expected = (load_file(folder / "projection.safetensors") for folder in (partitioned, run))
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=tolerance(1e-4, 1e-2))
