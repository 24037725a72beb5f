"""Weights in fewer bits: parameters are rounded, and nothing that stands beside them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from diffcse_scale.encoding.window_encoder import WindowEncoder
from diffcse_scale.model.weights import cast_parameters
from diffcse_scale.model_folder.load import load_model
from diffcse_scale.model_folder.save import export_sentence_transformer
from tests.support.tiny_models import tiny_backbone, tiny_llama, tiny_tokenizer

ROTARY = ("llama", "modernbert")


@pytest.mark.parametrize("family", ROTARY)
def test_frequencies_of_rotary_positions_stay_exact(family: str) -> None:
    network = tiny_backbone(family)
    before = {name: buffer.clone() for name, buffer in network.named_buffers()}
    cast_parameters(network, torch.bfloat16)
    assert {parameter.dtype for parameter in network.parameters()} == {torch.bfloat16}
    assert any(buffer.is_floating_point() for buffer in before.values())
    for name, buffer in network.named_buffers():
        assert torch.equal(buffer, before[name]) and buffer.dtype == before[name].dtype, name


@pytest.mark.parametrize("family", ROTARY)
def test_late_positions_are_those_of_float32(family: str) -> None:
    """Cosine of the last of 64 token vectors with float32's."""
    network = tiny_backbone(family).eval()
    ids = torch.arange(64)[None] % 20 + 5
    with torch.no_grad():
        truth = network(input_ids=ids).last_hidden_state[0, -1]
        cast_parameters(network, torch.bfloat16)
        rounded = network(input_ids=ids).last_hidden_state[0, -1].float()
    assert F.cosine_similarity(truth, rounded, dim=0) > 0.999


def test_encode_in_bfloat16_keeps_them_exact(tmp_path: Path) -> None:
    """On the device "meta", which as every accelerator has its weights cast; on CPUs products are."""
    export_sentence_transformer(tiny_llama(), tiny_tokenizer(), "last", 16, tmp_path / "model")
    encoder = WindowEncoder(load_model(tmp_path / "model")[0], torch.device("meta"), "bfloat16")
    network = encoder._model
    assert {parameter.dtype for parameter in network.parameters()} == {torch.bfloat16}
    assert {buffer.dtype for buffer in network.buffers() if buffer.is_floating_point()} == {torch.float32}
