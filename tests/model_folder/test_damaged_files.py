"""Whatever is wrong with a file of a model folder, every loader says so in one sentence that names the folder."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from diffcse_scale.export import export_sentence_transformer
from diffcse_scale.export.command import ExportOptions, export_model
from diffcse_scale.foundation.errors import InputError
from diffcse_scale.model.backbone import load_backbone, load_tokenizer
from diffcse_scale.model.damage import damage_told
from diffcse_scale.model.official_checkpoint import load_official_checkpoint
from diffcse_scale.model.starting_point import left_out
from diffcse_scale.model_folder.load import load_model
from diffcse_scale.recipe import ObjectiveRecipe
from diffcse_scale.recipe_file import load_recipe
from tests.support.hand_made_run import write_run
from tests.support.tiny_models import tiny_bert, tiny_tokenizer
from tests.support.toys import toy_model

DEEP = "[" * 100_000


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good") / "model"
    export_sentence_transformer(tiny_bert(), tiny_tokenizer(), "mean", 16, folder)
    return folder


def begin_training(folder: str) -> None:
    """What training reads of its encoder."""
    load_tokenizer(folder)
    load_backbone(folder)
    left_out(load_recipe("simcse_bert_base", ["data.files=x.txt", f"model.encoder={folder}"]))


LOADERS: dict[str, Callable[[str], object]] = {
    "its own modules": load_model,
    "another pooling": lambda folder: load_model(folder, "cls"),
    "training": begin_training,
}
TEXTS: dict[str, bytes] = {
    "empty": b"",
    "cut": b'{"a": [1, ',
    "deep": DEEP.encode(),
    "not UTF-8": b'{"a": "\xff\xfe"}',
    "a number": b"3",
    "null": b"null",
    "a list of lists": b"[[]]",
    "binary": bytes(range(256)),
}
CONFIGURATIONS = ("config.json", "modules.json", "tokenizer.json")


SOME = ("cut", "deep", "not UTF-8")


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("text", [pytest.param(text, marks=[] if text in SOME else pytest.mark.slow) for text in TEXTS])
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_json_file_that_is_none(good: Path, tmp_path: Path, name: str, text: str, loader: str) -> None:
    folder = shutil.copytree(good, tmp_path / "model")
    (folder / name).write_bytes(TEXTS[text])
    with pytest.raises(InputError, match=str(tmp_path)) as raised:
        LOADERS[loader](str(folder))
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 600


@pytest.mark.skipif(find_spec("fugashi") is not None, reason="fugashi is installed")
def test_a_package_that_is_not_installed_is_no_damage(good: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(good, tmp_path / "model")
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").write_text("[PAD]\n[UNK]\na\n")
    settings = {"tokenizer_class": "BertJapaneseTokenizer", "word_tokenizer_type": "mecab"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(InputError, match=r"cannot be read: You need to install fugashi to use MecabTokenizer\.$"):
        load_tokenizer(str(folder))


@pytest.mark.skipif(find_spec("sentencepiece") is not None, reason="sentencepiece is installed")
def test_a_vocabulary_of_sentencepiece_names_its_package(good: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(good, tmp_path / "model")
    (folder / "tokenizer.json").unlink()
    (folder / "spm.model").write_bytes(b"\x0a\x0e\x0a\x05<unk>\x15\0\0\0\0\x18\x02")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "DebertaV2Tokenizer"}')
    with pytest.raises(InputError, match=r"its vocabulary is a SentencePiece file; pip install sentencepiece\.$"):
        load_tokenizer(str(folder))


def test_what_deepspeed_refuses_while_a_model_is_read_is_no_damage_of_the_model() -> None:
    """At ZeRO-3 it partitions what is read, and says there what it cannot do."""
    from deepspeed.runtime.utils import get_only_unique_item

    words = "DeepSpeed's configuration cannot be used to load Model m: expected there to be only one unique"
    with pytest.raises(InputError, match=words), damage_told("Model m"):
        get_only_unique_item([1, 2])


def _loop(folder: Path, name: str) -> None:
    (folder / name).unlink()
    (folder / name).symlink_to(name)


def _set(folder: Path, name: str, **values: Any) -> None:
    content = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps({**content, **values}))


def _as_bin(folder: Path, content: object, keep: int | None = None) -> None:
    (folder / "model.safetensors").unlink()
    torch.save(content, folder / "pytorch_model.bin")
    if keep is not None:
        os.truncate(folder / "pytorch_model.bin", keep)


def _with_pickle(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"a": 1}))


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


DAMAGES: dict[str, Callable[[Path], object]] = {
    "weights cut": lambda folder: os.truncate(folder / "model.safetensors", 2000),
    "weights empty": lambda folder: os.truncate(folder / "model.safetensors", 0),
    "header of nonsense": lambda folder: (folder / "model.safetensors").write_bytes(b"\x08" + b"\0" * 7 + b"nonsense"),
    "header without end": lambda folder: (folder / "model.safetensors").write_bytes(b"\xff" * 64),
    "weights a loop of links": partial(_loop, name="model.safetensors"),
    "configuration a loop of links": partial(_loop, name="config.json"),
    "weights a folder": lambda folder: [file := folder / "model.safetensors", file.unlink(), file.mkdir()],
    "a pickle": _with_pickle,
    "a list in place of weights": lambda folder: _as_bin(folder, [torch.ones(2)]),
    "a tensor in place of weights": lambda folder: _as_bin(folder, torch.ones(2)),
    "a cut archive": lambda folder: _as_bin(folder, _weights(folder), keep=3000),
    "a width that is a word": partial(_set, name="config.json", hidden_size="wide"),
    "a negative width": partial(_set, name="config.json", hidden_size=-24),
    "a family that is a number": partial(_set, name="config.json", model_type=3),
    "too small a vocabulary": partial(_set, name="config.json", vocab_size=10),
}
OF_MODULES: dict[str, Callable[[Path], object]] = {
    "no configuration of the pooling": lambda folder: (folder / "1_Pooling" / "config.json").unlink(),
    "no folder of the pooling": lambda folder: shutil.rmtree(folder / "1_Pooling"),
    "an unknown pooling": partial(_set, name="1_Pooling/config.json", pooling_mode="best"),
    "a pooling of another width": partial(_set, name="1_Pooling/config.json", word_embedding_dimension=7),
    "a width of the pooling that is a word": partial(_set, name="1_Pooling/config.json", word_embedding_dimension="x"),
    "a negative length": partial(_set, name="sentence_bert_config.json", max_seq_length=-4),
    "a length that is a word": partial(_set, name="sentence_bert_config.json", max_seq_length="long"),
    "modules without a type": lambda folder: (folder / "modules.json").write_text('[{"path": ""}]'),
}
CASES = [(damage, loader) for damage in DAMAGES for loader in LOADERS]
CASES += [(damage, "its own modules") for damage in OF_MODULES]


@pytest.mark.parametrize(("damage", "loader"), CASES)
def test_a_file_that_is_damaged(good: Path, tmp_path: Path, damage: str, loader: str) -> None:
    folder = shutil.copytree(good, tmp_path / "model")
    {**DAMAGES, **OF_MODULES}[damage](folder)
    with pytest.raises(InputError, match=str(tmp_path)) as raised:
        LOADERS[loader](str(folder))
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 600


@pytest.mark.parametrize("name", ["~nosuchuser/model", "x" * 300, "a/b/" + "x" * 300, "loop", "file"])
@pytest.mark.parametrize("loader", LOADERS)
def test_a_name_of_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, loader: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"does not exist|cannot be read|there is no such user|is too long"):
        LOADERS[loader](name)


CHECKPOINTS: dict[str, Callable[[Path], object]] = {
    "cut": lambda file: [torch.save({"bert.x": torch.ones(9)}, file), os.truncate(file, 500)],
    "empty": lambda file: file.touch(),
    "a list": lambda file: torch.save([torch.ones(2)], file),
    "numbers": lambda file: torch.save({"bert.x": 1, 2: torch.ones(1)}, file),
    "a pickle": lambda file: file.write_bytes(pickle.dumps({"a": Path("x")})),
    "text": lambda file: file.write_text("version https://git-lfs.github.com/spec/v1\n"),
}


@pytest.mark.parametrize("damage", CHECKPOINTS)
def test_a_damaged_official_checkpoint(tmp_path: Path, damage: str) -> None:
    CHECKPOINTS[damage](tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match=f"Checkpoint {tmp_path}"):
        load_official_checkpoint(toy_model(ObjectiveRecipe(rtd_weight=0.5)), tmp_path)


@pytest.mark.parametrize("damage", ["cut", "another program's"])
def test_an_export_of_a_run_with_a_damaged_record(tmp_path: Path, damage: str) -> None:
    run = write_run(tmp_path / "mine")
    (run / "run.json").write_text('{"plan": ' if damage == "cut" else "{}")
    with pytest.raises(InputError, match=f"{run}"):
        export_model(run, tmp_path / "out", ExportOptions())
    assert not (tmp_path / "out").exists()
