"""What a file holds is known by its content alone, and is read again only when it may have changed."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import pytest

from diffcse_scale.recipe import DataRecipe
from diffcse_scale.text import digests
from diffcse_scale.text.corpus import corpus_fingerprint
from diffcse_scale.text.digests import digest, model_digest


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Written long enough ago to be remembered."""
    monkeypatch.setattr(digests, "SETTLED", 0.0)
    path = tmp_path / "file.txt"
    path.write_bytes(b"one")
    return path


def test_it_is_sha256_and_is_read_once(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = digest(file, tmp_path)
    assert first == hashlib.sha256(b"one").hexdigest()
    monkeypatch.setattr(digests, "sha256_of", lambda file: "read again")
    assert digest(file, tmp_path) == first


@pytest.mark.parametrize("way", ["written", "written in the old time", "replaced in the old time"])
def test_another_content_of_the_same_size_is_noticed(file: Path, tmp_path: Path, way: str) -> None:
    digest(file, tmp_path)
    time = file.stat().st_mtime_ns
    target = tmp_path / "new" if way.startswith("replaced") else file
    target.write_bytes(b"two")
    if way != "written":
        os.utime(target, ns=(time, time))
    target.replace(file)
    assert digest(file, tmp_path) == hashlib.sha256(b"two").hexdigest()


def test_a_file_that_was_just_written_is_not_remembered(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be written to again within the same tick of the file system's clock."""
    monkeypatch.setattr(digests, "SETTLED", 60.0)
    digest(file, tmp_path)
    assert not [path for path in (tmp_path / "digests").iterdir() if path.suffix != ".lock"]


def test_a_cache_that_cannot_be_written_costs_time_alone(file: Path, tmp_path: Path) -> None:
    (tmp_path / "no folder").touch()
    assert digest(file, tmp_path / "no folder") == hashlib.sha256(b"one").hexdigest()


def test_a_copy_of_a_corpus_is_the_same_corpus(tmp_path: Path) -> None:
    here, there = tmp_path / "here.txt", tmp_path / "elsewhere" / "there.txt"
    here.write_text("one\ntwo\n")
    there.parent.mkdir()
    shutil.copyfile(here, there)
    os.utime(there, (1, 1))
    first, second = (corpus_fingerprint(DataRecipe(files=[str(path)])) for path in (here, there))
    assert first == second
    there.write_text("one\ntow\n")
    assert corpus_fingerprint(DataRecipe(files=[str(there)])) != first


def test_a_model_is_its_files_and_one_on_the_hub_its_name(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name / "inner").mkdir(parents=True)
        (tmp_path / name / "inner" / "config.json").write_text("{}")
        (tmp_path / name / "README.md").write_text(name)  # no part of the network
    first, second = (model_digest(str(tmp_path / name), tmp_path) for name in ("one", "two"))
    assert first == second
    (tmp_path / "two" / "inner" / "config.json").write_text("[]")
    assert model_digest(str(tmp_path / "two"), tmp_path) != first
    assert model_digest("owner/name", tmp_path) == "owner/name"


@pytest.mark.parametrize(
    "added",
    [
        *("notes.txt", "eval_results.txt", "all_results.json", "trainer_state.json", "training_args.bin"),
        *("openvino/openvino_model.bin", "onnx/config.json", ".cache/huggingface/upload/config.json"),
    ],
)
def test_a_file_beside_a_model_does_not_make_it_another(tmp_path: Path, added: str) -> None:
    """People and programs leave such files; a run could not be resumed and embeddings not be searched any more."""
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    before = model_digest(str(model), tmp_path)
    (model / added).parent.mkdir(parents=True, exist_ok=True)
    (model / added).write_text("added")
    assert model_digest(str(model), tmp_path) == before
    for name in ("vocab.txt", "merges.txt", "tokenizer.model", "pytorch_model.bin", "1_Pooling/config.json"):
        (model / name).parent.mkdir(exist_ok=True)
        (model / name).write_text("added")
        before, earlier = model_digest(str(model), tmp_path), before
        assert before != earlier
