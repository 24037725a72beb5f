"""Sentences are encoded on a GPU, in training's evaluations and by `encode`, without waits that are not listed."""

from __future__ import annotations

from pathlib import Path

import pytest
from sentence_transformers import SentenceTransformer

from diffcse_scale.encoding.window_encoder import WindowEncoder
from diffcse_scale.export import export_sentence_transformer
from diffcse_scale.model.encoder import Encoder, encode_sentences
from diffcse_scale.model.packing import allow_packing
from tests.support.encoding_material import sentence
from tests.support.imagined_gpu import GPU, ImaginedGPU
from tests.support.rehearsed_step import LIBRARYS_CONSTANT, LIBRARYS_LOOK
from tests.support.tiny_models import DECODER_FAMILIES, FAMILIES, WIDE, tiny_backbone, tiny_tokenizer

SENTENCES = [sentence(index) for index in range(12)]
LENGTH = 16
OWN = {"deberta-v2": {LIBRARYS_CONSTANT}, "mpnet": {LIBRARYS_LOOK}}  # of families that take no packed rows


def pooling_of(family: str) -> str:
    return "last" if family in DECODER_FAMILIES else "mean"


@pytest.mark.parametrize("family", FAMILIES)
def test_an_evaluation_waits_for_the_embeddings_alone(family: str) -> None:
    """The scores are computed on the host."""
    meant = {
        "model/encoder.py: encode_sentences: a copy to the host",
        *OWN.get(family, ()),
        *({LIBRARYS_LOOK} if family == "mpnet" else ()),
    }
    with ImaginedGPU(*meant) as gpu:
        with gpu.building():
            backbone = tiny_backbone(family)
            allow_packing(backbone)
            encoder = Encoder(backbone, pooling_of(family)).to(GPU)
        assert encode_sentences(encoder, tiny_tokenizer(), SENTENCES, LENGTH, batch_size=4).shape == (12, 24)
        assert gpu.met == meant


@pytest.mark.parametrize("family", FAMILIES)
def test_encode_waits_once_a_window_and_looks_for_padding_once_a_batch(family: str, tmp_path: Path) -> None:
    """A batch is as many tokens as fill a device, and many have no padding: attention then needs no mask."""
    export_sentence_transformer(
        tiny_backbone(family, **WIDE.get(family, {})), tiny_tokenizer(), pooling_of(family), LENGTH, tmp_path
    )
    model = SentenceTransformer(str(tmp_path), device="cpu", local_files_only=True)
    causal = family in DECODER_FAMILIES
    looks = LIBRARYS_LOOK.replace("bidirectional", "causal") if causal else LIBRARYS_LOOK
    meant = {"encoding/window_encoder.py: encode: a copy to the host", *OWN.get(family, {looks})}
    with ImaginedGPU(*meant) as gpu:
        with gpu.building():
            encoder = WindowEncoder(model, GPU, "bfloat16", batch_tokens=64)
        window = encoder.prepare(SENTENCES)
        assert encoder.encode(window).shape == (12, 24) and len(window.batches) > 1
        assert gpu.met == meant
