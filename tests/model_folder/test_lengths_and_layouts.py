"""Network, lengths and prompts are what the files of a folder say, in whatever layout."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Pooling, Transformer
from transformers import PreTrainedModel, T5Config, T5EncoderModel

from diffcse_scale.encoding import EncodeOptions, encode
from diffcse_scale.evaluation.command import evaluate_models
from diffcse_scale.export import export_sentence_transformer
from diffcse_scale.export.command import ExportOptions, export_model
from diffcse_scale.foundation.errors import InputError
from diffcse_scale.model_folder.load import load_model, truncate_at
from diffcse_scale.model_folder.save import set_max_length
from tests.support.files import set_about
from tests.support.old_layout import to_old_layout
from tests.support.tiny_models import SENTENCE, WORDS, tiny_backbone, tiny_bert, tiny_tokenizer

LONG = " ".join(WORDS * 20)


def plain_folder(folder: Path, network: PreTrainedModel, **of_tokenizer: Any) -> Path:
    """As transformers writes it; the tokenizer names no length."""
    network.save_pretrained(folder)
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(of_tokenizer.get("more", []))
    tokenizer.save_pretrained(folder)
    return folder


def test_without_a_word_of_the_folder_no_sentence_is_longer_than_the_positions(tmp_path: Path) -> None:
    model, _ = load_model(plain_folder(tmp_path / "roberta", tiny_backbone("roberta")), "mean")
    assert model.max_seq_length == 39  # of 40 rows; position 0 is that of padding
    assert np.isfinite(model.encode(LONG)).all()


def test_a_length_of_the_folder_that_is_beyond_its_positions_is_not_believed(tmp_path: Path) -> None:
    export_sentence_transformer(tiny_backbone("roberta"), tiny_tokenizer(), "mean", 40, tmp_path / "model")
    model, _ = load_model(tmp_path / "model")
    assert model.max_seq_length == 39
    assert np.isfinite(model.encode(LONG)).all()


@pytest.mark.parametrize("length", [-4, 0, 1, 2])
@pytest.mark.parametrize("pooling", [None, "mean"])
def test_a_length_of_the_folder_that_leaves_no_room_for_words_is_refused(
    tmp_path: Path, length: int, pooling: str | None
) -> None:
    export_sentence_transformer(tiny_bert(), tiny_tokenizer(), "mean", 3, tmp_path / "model")
    load_model(tmp_path / "model", pooling)
    set_max_length(tmp_path / "model", length)
    words = f"reads {length} tokens, which is no number above its 2 special tokens; .* into sentence_bert_config"
    with pytest.raises(InputError, match=words):
        load_model(tmp_path / "model", pooling)


def test_relative_positions_have_no_end(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = T5Config(vocab_size=32, d_model=24, d_kv=12, d_ff=32, num_layers=2, num_heads=2)
    model, _ = load_model(plain_folder(tmp_path / "t5", T5EncoderModel(config)), "mean")
    truncate_at(model, 200)
    assert model.max_seq_length == 200 and np.isfinite(model.encode(LONG)).all()


def commands(folder: Path, there: Path, length: int) -> dict[str, Any]:
    """Calls of every command that takes a length; each reads and writes below `there`."""
    there.mkdir()
    (there / "pairs.tsv").write_text("1\ta dog\ta cat\n2\tthe cat\ta horse\n3\ta dog\ta dog runs\n")
    (there / "text.txt").write_text(f"{LONG}\n")
    options = {"model": str(folder), "input": [str(there / "text.txt")], "output": str(there / "out"), "devices": "cpu"}
    return {
        "encode": lambda: encode(EncodeOptions(**options, max_length=length), progress=False),
        "evaluate": lambda: evaluate_models([folder], there / "pairs.tsv", max_length=length),
        "export": lambda: export_model(folder, there / "out", ExportOptions(max_length=length)),
    }


@pytest.mark.parametrize("command", ["encode", "evaluate", "export"])
def test_every_command_refuses_a_length_beyond_the_positions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setenv("DIFFCSE_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "model"
    export_sentence_transformer(tiny_backbone("roberta"), tiny_tokenizer(), "mean", 16, folder)
    with pytest.raises(InputError, match=f"--max-length = 40 is more than the 39 positions of {folder}; lower it"):
        commands(folder, tmp_path / "no", 40)[command]()
    assert not list(tmp_path.glob("no/out/*.safetensors")) + list(tmp_path.glob("no/out/embeddings*"))
    commands(folder, tmp_path / "yes", 39)[command]()


def test_embeddings_are_not_removed_for_a_model_that_cannot_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DIFFCSE_CACHE", str(tmp_path / "cache"))
    export_sentence_transformer(tiny_bert(), tiny_tokenizer(), "mean", 16, tmp_path / "model")
    commands(tmp_path / "model", tmp_path / "work", 8)["encode"]()
    before = {file: file.read_bytes() for file in (tmp_path / "work" / "out").iterdir()}
    model, text, out = (str(tmp_path / name) for name in ("model", "work/text.txt", "work/out"))
    options = EncodeOptions(model=model, input=[text], output=out, devices="cpu", max_length=999, overwrite=True)
    with pytest.raises(InputError, match="positions of"):
        encode(options, progress=False)
    assert {file: file.read_bytes() for file in (tmp_path / "work" / "out").iterdir()} == before


def test_a_models_second_of_two_is_read_before_the_first_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export_sentence_transformer(tiny_bert(), tiny_tokenizer(), "mean", 16, tmp_path / "good")
    shutil.copytree(tmp_path / "good", tmp_path / "bad")
    (tmp_path / "bad" / "tokenizer.json").write_text("{")
    (tmp_path / "pairs.tsv").write_text("1\ta dog\ta cat\n2\tthe cat\ta horse\n3\ta dog\ta dog runs\n")
    with pytest.raises(InputError, match="bad"):
        evaluate_models([tmp_path / "good", tmp_path / "bad"], tmp_path / "pairs.tsv")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("pooling", [None, "mean"])
def test_too_small_a_vocabulary_is_refused(tmp_path: Path, pooling: str | None) -> None:
    more = [f"word{number}" for number in range(32)]
    folder = plain_folder(tmp_path / "model", tiny_backbone("bert"), more=more)
    with pytest.raises(InputError, match=r"has embeddings for 32 ids, but its tokenizer writes ids up to 5\d; give it"):
        load_model(folder, pooling)


def test_rows_beyond_the_tokenizers_ids_stay_in_an_export(tmp_path: Path) -> None:
    network = tiny_bert()
    network.resize_token_embeddings(64, mean_resizing=False)
    export_sentence_transformer(network, tiny_tokenizer(), "mean", 16, tmp_path / "model")
    export_model(tmp_path / "model", tmp_path / "out", ExportOptions())
    model, _ = load_model(tmp_path / "out")
    assert model[0].auto_model.get_input_embeddings().num_embeddings == 64


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """Mean pooling, Dense and a default prompt, as sentence-transformers writes them."""
    transformer = Transformer(str(plain_folder(tmp_path / "plain", tiny_bert())), max_seq_length=16)
    modules = [transformer, Pooling(24, "mean"), Dense(24, 8)]
    model = SentenceTransformer(modules=modules, prompts={"query": "the cat "}, default_prompt_name="query")
    model.save(str(tmp_path / "whole"), create_model_card=False)
    return tmp_path / "whole"


def test_under_another_pooling_modules_are_left_out_aloud_and_prompts_stay(
    whole: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, _ = load_model(whole, "mean")
    assert f"{whole}: the modules Dense are left out" in caplog.text
    plain, _ = load_model(tmp_path / "plain", "mean")
    np.testing.assert_allclose(model.encode("a dog"), plain.encode("the cat a dog"), rtol=0, atol=1e-6)


def test_under_another_pooling_vectors_keep_the_width_of_the_folder(whole: Path) -> None:
    set_about(whole, truncate_dim=5)
    model, _ = load_model(whole, "mean")
    assert model.encode("a dog").shape == (5,) == (model.get_embedding_dimension(),)


@pytest.mark.parametrize("width", [0, -1, 5.0, "5", True])
@pytest.mark.parametrize("pooling", [None, "mean"])
def test_a_width_of_the_folder_that_no_vector_has_is_refused(whole: Path, width: object, pooling: str | None) -> None:
    set_about(whole, truncate_dim=width)
    words = rf"the first {width!r} numbers of a vector \(truncate_dim in config_sentence_transformers\.json\); write"
    with pytest.raises(InputError, match=words):
        load_model(whole, pooling)


def test_an_old_layout_gives_the_same_vectors(whole: Path) -> None:
    old = whole.with_name("old")
    shutil.copytree(whole, old)
    to_old_layout(old)
    for pooling in (None, "cls"):
        found, expected = (load_model(folder, pooling)[0].encode(SENTENCE) for folder in (old, whole))
        np.testing.assert_array_equal(found, expected)
    export_model(old, old.with_name("out"), ExportOptions(max_length=8))
    assert load_model(old.with_name("out"))[0].max_seq_length == 8
