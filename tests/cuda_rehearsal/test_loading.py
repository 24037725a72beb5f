"""Pretrained networks are loaded on the GPU, and the rest of the model follows."""

from __future__ import annotations

from pathlib import Path

import pytest

from diffcse_scale.engine.engine import loading_device
from diffcse_scale.model.backbone import load_tokenizers
from diffcse_scale.model.build import build_model
from diffcse_scale.model.encoder import encode_sentences
from diffcse_scale.model.generator import load_generator
from diffcse_scale.recipe_file import load_recipe
from tests.support.imagined_gpu import GPU, ImaginedGPU
from tests.support.tiny_models import FAMILIES, tiny_backbone, tiny_tokenizer

ADAPTERS = ["model.lora.rank=4", "model.lora.base=bfloat16"]


@pytest.fixture(autouse=True)
def imagined_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers reads weights in this thread, which alone sees the imagined GPU; nobody looks at their numbers."""
    monkeypatch.setenv("HF_DEACTIVATE_ASYNC_LOAD", "1")
    monkeypatch.setattr("diffcse_scale.model.backbone.check_finite", lambda *_: None)
    monkeypatch.setattr("diffcse_scale.model.generator._check_finite", lambda *_: None)


@pytest.mark.parametrize("overrides", [[], ADAPTERS], ids=["whole", "adapters"])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_loaded_on_the_gpu_computes_there(family: str, overrides: list[str], tmp_path: Path) -> None:
    tiny_backbone(family).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    encoder = f"model.encoder={tmp_path}"
    recipe = load_recipe("quickstart", ["model.projection=batchnorm", encoder, "objective.rtd_weight=0", *overrides])
    tokenizers = load_tokenizers(recipe.model)
    with ImaginedGPU() as gpu, gpu.building():
        model = build_model(recipe, tokenizers, loading_device({}, recipe, GPU))
        backbone = model.encoder.backbone
        assert {tensor.device for tensor in (*backbone.parameters(), *backbone.buffers())} == {GPU}
        vectors = encode_sentences(model.encoder, tokenizers.encoder, ["a dog runs", "the cat"], 16)
    assert vectors.shape == (2, backbone.config.hidden_size)


def test_the_quickstarts_networks_and_generator() -> None:
    recipe = load_recipe("quickstart")
    tokenizers = load_tokenizers(recipe.model)
    with ImaginedGPU() as gpu, gpu.building():
        model = build_model(recipe, tokenizers, loading_device({}, recipe, GPU))
        generator = load_generator(recipe, tokenizers, GPU)
        assert {p.device for n, p in model.named_parameters() if "backbone" in n} == {GPU}
        assert generator is not None
        assert {tensor.device for tensor in (*generator.model.parameters(), *generator.model.buffers())} == {GPU}
