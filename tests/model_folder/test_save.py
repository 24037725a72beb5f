"""An exported directory gives the vectors of the pooling it was exported with, in both libraries."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from diffcse_scale.export import export_sentence_transformer
from diffcse_scale.foundation.errors import InputError
from diffcse_scale.model.pooling import POOLINGS
from tests.support.tiny_models import tiny_bert, tiny_llama, tiny_tokenizer

SENTENCES = ["a dog runs", "the cat", "a dog runs fast over green grass and barks at the cat", "grass"]
MAX_LENGTH = 8  # shorter than the longest sentence, so that truncation shows


@torch.no_grad()
def pooled_by_hand(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, pooling: str) -> np.ndarray:
    """One sentence at a time, so that there is no padding: [n, H]."""
    rows = []
    for sentence in SENTENCES:
        tokens = tokenizer(sentence, truncation=True, max_length=MAX_LENGTH, return_tensors="pt")
        states = model(input_ids=tokens["input_ids"], output_hidden_states=True).hidden_states
        last = states[-1][0]
        rows.append(
            {
                "cls": last[0],
                "mean": last.mean(0),
                "last": last[-1],
                "first_last_mean": ((states[0][0] + last) / 2).mean(0),
            }[pooling]
        )
    return torch.stack(rows).numpy()


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("make_model", [tiny_bert, tiny_llama])
def test_both_libraries_give_the_vectors_of_the_exported_pooling(make_model, pooling: str, tmp_path: Path) -> None:
    model, tokenizer = make_model(), tiny_tokenizer()
    expected = pooled_by_hand(model, tokenizer, pooling)

    export_sentence_transformer(model, tokenizer, pooling, MAX_LENGTH, tmp_path / "out")

    sentence_transformer = SentenceTransformer(str(tmp_path / "out"), device="cpu", local_files_only=True)
    assert sentence_transformer.max_seq_length == MAX_LENGTH
    np.testing.assert_allclose(sentence_transformer.encode(SENTENCES), expected, rtol=0, atol=1e-6)
    plain = AutoModel.from_pretrained(tmp_path / "out").eval()
    plain_tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    np.testing.assert_allclose(pooled_by_hand(plain, plain_tokenizer, pooling), expected, rtol=0, atol=1e-6)


def test_the_poolings_are_four_different_ones() -> None:
    vectors = [pooled_by_hand(tiny_bert(), tiny_tokenizer(), pooling) for pooling in POOLINGS]
    for index, one in enumerate(vectors):
        for other in vectors[index + 1 :]:
            assert np.abs(one - other).max() > 1e-2


def test_weights_and_model_card_stand_at_the_root(tmp_path: Path) -> None:
    export_sentence_transformer(tiny_bert(), tiny_tokenizer(), "cls", MAX_LENGTH, tmp_path / "out", card="# A card\n")

    assert (tmp_path / "out" / "model.safetensors").is_file()
    assert (tmp_path / "out" / "README.md").read_text() == "# A card\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o777 & ~umask


def test_an_earlier_export_is_replaced(tmp_path: Path) -> None:
    export_sentence_transformer(tiny_bert(), tiny_tokenizer(), "first_last_mean", MAX_LENGTH, tmp_path / "out")
    export_sentence_transformer(tiny_bert(), tiny_tokenizer(), "cls", MAX_LENGTH, tmp_path / "out")

    assert not (tmp_path / "out" / "1_WeightedLayerPooling").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_a_directory_that_is_no_export_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("precious")

    with pytest.raises(InputError, match=r"was not written by export_sentence_transformer: it holds notes\.txt"):
        export_sentence_transformer(tiny_bert(), tiny_tokenizer(), "cls", MAX_LENGTH, tmp_path)

    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_failed_export_leaves_the_earlier_one_and_no_rubbish(tmp_path: Path) -> None:
    export_sentence_transformer(tiny_bert(), tiny_tokenizer(), "mean", MAX_LENGTH, tmp_path / "out")
    before = (tmp_path / "out" / "model.safetensors").stat().st_mtime_ns

    with pytest.raises(ValueError, match="pooling must be one of"):
        export_sentence_transformer(tiny_bert(), tiny_tokenizer(), "median", MAX_LENGTH, tmp_path / "out")

    assert (tmp_path / "out" / "model.safetensors").stat().st_mtime_ns == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
