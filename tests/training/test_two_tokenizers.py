"""A decoder-only encoder with a masked language model of another vocabulary and width as discriminator."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModel, LlamaConfig, LlamaModel

from tests.support.launch import launch, metrics
from tests.support.toy_world import toy_tokenizer


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_trains_evaluates_and_exports(toy_world, tmp_path, stage):
    torch.manual_seed(0)
    sentences = (toy_world / "corpus.txt").read_text().splitlines()
    tokenizer = toy_tokenizer(sentences, vocabulary=200)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=64,
    )
    LlamaModel(config).save_pretrained(tmp_path / "llama")
    tokenizer.save_pretrained(tmp_path / "llama")
    masked_lm = toy_world / "model"  # 300 tokens, width 32
    result = launch(
        *("--deepspeed_config", f"ds_configs/zero{stage}.json", "--recipe", str(toy_world / "toy.yaml")),
        *(
            "--output",
            str(tmp_path / "run"),
            f"model.encoder={tmp_path / 'llama'}",
            "model.pooling=last",
            "model.dropout=0.1",
        ),
        *(f"model.discriminator={masked_lm}", f"model.generator={masked_lm}", "batch.chunk=4"),
    )
    assert result.returncode == 0, result.stdout
    rows = [row for row in metrics(tmp_path / "run") if "loss" in row]
    assert len(rows) == 12
    # RTD learns something: the loss of the last steps is below that of the first
    assert sum(row["rtd"] for row in rows[-3:]) < sum(row["rtd"] for row in rows[:3])
    assert AutoModel.from_pretrained(tmp_path / "run" / "model").config.model_type == "llama"


def test_a_generator_of_another_vocabulary_than_the_discriminators_is_refused(toy_world, tmp_path):
    toy_tokenizer(["a b c d e f"], vocabulary=20).save_pretrained(tmp_path / "other")
    (tmp_path / "other" / "config.json").write_text((toy_world / "model" / "config.json").read_text())
    result = launch(
        *("--recipe", str(toy_world / "toy.yaml"), "--output", str(tmp_path / "run")),
        *(f"model.discriminator={toy_world / 'model'}", f"model.generator={tmp_path / 'other'}"),
        ranks=1,
    )
    assert result.returncode == 2
    assert f"Vocabularies differ between discriminator {toy_world / 'model'} and generator" in result.stdout
    assert "choose a generator with the same tokenizer, or train one" in result.stdout
