"""Input and model are known by their content: copies go on with what was begun from the originals."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from diffcse_scale.encoding import EncodeOptions, encode, load
from diffcse_scale.export import export_sentence_transformer
from diffcse_scale.foundation.errors import InputError
from tests.support.tiny_models import tiny_bert

Options = Callable[..., EncodeOptions]


def manifest(chosen: EncodeOptions) -> Path:
    return Path(chosen.output) / "_manifest.json"


def test_the_same_bytes_of_another_time_are_the_same_input(options: Options, text_file: Path) -> None:
    chosen = options(text_file)
    encode(chosen, progress=False)
    os.utime(text_file, (1, 1))
    assert encode(chosen, progress=False).startswith("Nothing to do")
    text_file.write_text(text_file.read_text().replace("a", "b"))
    with pytest.raises(InputError, match="was begun with another input"):
        encode(chosen, progress=False)


def test_copies_elsewhere_are_the_same_input_and_model_and_are_found_from_then_on(
    options: Options, text_file: Path, sentences: list[str], model_dir: Path, tmp_path: Path
) -> None:
    chosen = options(text_file)
    encode(chosen, progress=False)
    place = tmp_path / "elsewhere"
    model = shutil.copytree(model_dir, place / "model")
    copy = shutil.copyfile(text_file, place / "copy.txt")
    text_file.unlink()
    assert encode(options(copy, model=str(model)), progress=False).startswith("Nothing to do")
    assert json.loads(manifest(chosen).read_text())["files"] == [str(copy)]
    assert load(chosen.output).texts([5]) == [sentences[5]]


def test_a_folder_of_an_earlier_version_is_gone_on_with_as_long_as_path_size_and_time_stay(
    options: Options, text_file: Path, sentences: list[str]
) -> None:
    """Its manifest has these of the input, and its journal counts no tokens."""
    chosen = options(text_file)
    encode(chosen, progress=False)
    state = text_file.stat()
    facts = json.loads(manifest(chosen).read_text())
    manifest(chosen).write_text(
        json.dumps({**facts, "input": [["text", [str(text_file.resolve()), state.st_size, state.st_mtime_ns]]]})
    )
    journal = Path(chosen.output) / "_shards.jsonl"
    shards = [json.loads(line) for line in journal.read_text().splitlines()]
    journal.write_text(
        "".join(json.dumps({k: v for k, v in shard.items() if k != "tokens"}) + "\n" for shard in shards[:-1])
    )
    assert not encode(chosen, progress=False).startswith("Nothing to do")
    assert load(chosen.output).texts([5]) == [sentences[5]]
    os.utime(text_file, (1, 1))
    with pytest.raises(InputError, match="was begun with another input"):
        encode(chosen, progress=False)


def test_the_share_of_unknown_tokens_is_told(options: Options, tmp_path: Path) -> None:
    """Half of the words are in no vocabulary; the two special tokens of a row count with the others."""
    file = tmp_path / "half.txt"
    file.write_text("老 the\n" * 40)
    assert encode(options(file), progress=False).endswith("25% of the tokens unknown to the model.")


def test_the_share_of_characters_that_a_tokenizer_leaves_out_is_told(options: Options, tmp_path: Path) -> None:
    """BPE without bytes and without an unknown token. Spaces do not count."""
    backend = Tokenizer(models.BPE({"[PAD]": 0, "a": 1, "b": 2, "ab": 3}, [("a", "b")]))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]")
    export_sentence_transformer(tiny_bert(), tokenizer, "mean", 20, tmp_path / "bpe")
    file = tmp_path / "half.txt"
    file.write_text("ab xy\n" * 40 + "ab a ba\nabx\n")
    chosen = options(file, model=str(tmp_path / "bpe"))
    assert encode(chosen, progress=False).endswith("; 48.2% of the characters left out by the tokenizer.")  # 81 / 168
    file.write_text("ab\n")
    assert "left out" not in encode(options(file, model=chosen.model, output=str(tmp_path / "all")), progress=False)


def test_a_text_of_megabytes_is_encoded_as_its_beginning(options: Options, tmp_path: Path) -> None:
    file = tmp_path / "long.txt"
    words = "the dog runs over a field and "
    file.write_text(words * 100_000 + "\n" + words * 30 + "\n")
    encode(options(file), progress=False)
    whole = next(iter(load(options(file).output).stored()))
    assert whole[0].tolist() == pytest.approx(whole[1].tolist(), abs=1e-6)
