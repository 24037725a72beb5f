"""What is loaded is what was asked for, or one sentence says why not."""

from __future__ import annotations

import socket
import time

import numpy as np
import pytest
from huggingface_hub import constants
from sentence_transformers import SentenceTransformer
from tokenizers.processors import TemplateProcessing
from transformers import AutoModel, BertModel, PreTrainedTokenizerFast, T5Config, ViTConfig, ViTModel

from diffcse_scale.export import export_sentence_transformer
from diffcse_scale.foundation import hub_reach
from diffcse_scale.foundation.errors import InputError
from diffcse_scale.model.backbone import (
    load_backbone,
    load_config,
    load_encoder_tokenizer,
    load_masked_lm,
    load_tokenizer,
)
from diffcse_scale.model.encoder import Encoder, encode_sentences
from diffcse_scale.recipe import ModelRecipe
from tests.support.tiny_models import (
    BYTES,
    END,
    SENTENCE,
    tiny_backbone,
    tiny_byte_tokenizer,
    tiny_config,
    tiny_masked_lm,
    tiny_tokenizer,
)


def test_a_model_that_is_no_encoder_is_refused(tmp_path):
    T5Config().save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"\(t5\) is an encoder-decoder, .*; choose an encoder such as BERT"):
        load_config(str(tmp_path))
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    ViTModel(ViTConfig(**small, image_size=32)).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"\(vit\) reads pixel_values, not tokens"):
        load_backbone(str(tmp_path))


def test_an_encoder_that_its_configuration_makes_a_decoder_is_refused(tmp_path):
    """Its first token would see no other, so every sentence would have one embedding."""
    tiny_backbone("bert").save_pretrained(tmp_path)
    config = load_config(str(tmp_path))
    config.is_decoder = True
    config.save_pretrained(tmp_path)
    for load in (load_backbone, load_masked_lm):
        with pytest.raises(InputError, match=r"\(bert\) with is_decoder in config\.json, .*; set is_decoder to false"):
            load(str(tmp_path))


def test_outputs_have_names_whatever_the_configuration_says(tmp_path):
    tiny_masked_lm("bert").save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    config = load_config(str(tmp_path))
    config.return_dict = False
    config.save_pretrained(tmp_path)
    batch = load_tokenizer(str(tmp_path))(["a"], return_tensors="pt")
    assert load_backbone(str(tmp_path))(**batch).last_hidden_state.shape[0] == 1
    assert load_masked_lm(str(tmp_path))(**batch).logits.shape[0] == 1


def test_weights_that_are_not_in_the_file_are_not_made_up(tmp_path):
    tiny_backbone("bert").save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"no trained weights for cls\.predictions\.bias .*BertForMaskedLM needs"):
        load_masked_lm(str(tmp_path))


def test_the_body_of_a_masked_language_model_is_an_encoder(tmp_path):
    whole = tiny_masked_lm("bert")
    whole.save_pretrained(tmp_path)
    loaded = load_backbone(str(tmp_path)).state_dict()
    assert loaded.keys() == whole.bert.state_dict().keys()
    assert all((loaded[name] == value).all() for name, value in whole.bert.state_dict().items())


def test_the_pooler_is_left_out(tmp_path):
    BertModel(tiny_config("bert")).save_pretrained(tmp_path)
    assert not [name for name, _ in load_backbone(str(tmp_path)).named_parameters() if "pooler" in name]


@pytest.fixture
def silent_hub(tmp_path, monkeypatch):
    """The Hub's name leads to a machine that takes connections and never answers; and the folder of its cache."""
    cache, here = tmp_path / "cache", tmp_path / "here"
    (here / "bert-smal").mkdir(parents=True)
    monkeypatch.chdir(here)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub_reach, "PATIENCE", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        yield cache


def test_a_hub_that_cannot_be_reached_is_one_sentence_at_once_with_what_to_do(silent_hub, caplog):
    began = time.monotonic()
    for load in (load_tokenizer, load_config, load_masked_lm):
        with pytest.raises(
            InputError, match=r"not a folder here \(did you mean bert-smal\?\), the Hub cannot .*HF_ENDPOINT"
        ):
            load("bert-small")
    assert time.monotonic() - began < 5  # asked once
    assert caplog.messages == []


def test_a_copy_in_the_cache_serves_where_the_hub_cannot_be_reached(silent_hub):
    copy = silent_hub / "models--some--bert"
    (copy / "refs").mkdir(parents=True)
    (copy / "refs" / "main").write_text("abc")
    masked = tiny_masked_lm("bert")
    masked.save_pretrained(copy / "snapshots" / "abc")
    tiny_tokenizer().save_pretrained(copy / "snapshots" / "abc")
    assert load_tokenizer("some/bert").get_vocab() == tiny_tokenizer().get_vocab()
    loaded = load_masked_lm("some/bert").state_dict()
    assert all((loaded[name] == value).all() for name, value in masked.state_dict().items())
    assert not constants.HF_HUB_OFFLINE


@pytest.fixture(params=[False, True], ids=["no_start", "start"])
def decoder(request, tmp_path):
    """A saved decoder whose tokenizer adds no end token and has no padding token; with or without a start token."""
    tokenizer = tiny_byte_tokenizer()
    if request.param:
        tokenizer.add_special_tokens({"bos_token": "<s>"})
        template = TemplateProcessing("<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)])
        tokenizer.backend_tokenizer.post_processor = template
    tiny_backbone("qwen3", vocab_size=BYTES).save_pretrained(tmp_path / "decoder")
    tokenizer.save_pretrained(tmp_path / "decoder")
    return str(tmp_path / "decoder"), tokenizer


def test_the_last_token_is_always_the_end_token(decoder):
    folder, original = decoder
    end = original.convert_tokens_to_ids(END)
    last = load_encoder_tokenizer(ModelRecipe(encoder=folder, pooling="last"))
    assert last("a b")["input_ids"] == [*original("a b")["input_ids"], end]
    assert last(SENTENCE, truncation=True, max_length=8)["input_ids"][-1] == end
    mean = load_encoder_tokenizer(ModelRecipe(encoder=folder, pooling="mean"))
    assert mean("a b")["input_ids"] == original("a b")["input_ids"]


def test_an_exported_decoder_ends_and_pads_sentences_by_itself(decoder, tmp_path):
    folder, original = decoder
    tokenizer = load_encoder_tokenizer(ModelRecipe(encoder=folder, pooling="last"))
    assert original.pad_token is None and tokenizer.pad_token == END
    export_sentence_transformer(AutoModel.from_pretrained(folder), tokenizer, "last", 16, tmp_path / "out")
    sentences = [SENTENCE, "a dog", "the cat runs"]
    exported = SentenceTransformer(str(tmp_path / "out"), device="cpu", local_files_only=True)
    ours = encode_sentences(Encoder(load_backbone(folder), "last"), tokenizer, sentences, max_length=16)
    np.testing.assert_allclose(exported.encode(sentences), ours, rtol=0, atol=1e-6)


def test_a_tokenizer_that_cannot_end_a_sentence_is_refused_for_last(tmp_path):
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tiny_byte_tokenizer().backend_tokenizer, pad_token=END)
    tokenizer.save_pretrained(tmp_path)
    tiny_config("llama").save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"cannot end a sentence with an end token.*; use model\.pooling mean"):
        load_encoder_tokenizer(ModelRecipe(encoder=str(tmp_path), pooling="last"))
