"""Names of a corpus that are none are told in seconds, each with what was meant."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import huggingface_hub
import pytest

from diffcse_scale.foundation import hub_reach
from diffcse_scale.foundation.errors import InputError
from diffcse_scale.recipe import DataRecipe
from diffcse_scale.text.corpus import load_corpus
from diffcse_scale.text.sources import check_names
from tests.support.corpus_files import MakeRecipe, sentences_of


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "corpus.txt").write_text("one\n")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("corpus", r"Corpus corpus: no such file \(did you mean corpus\.txt\?\); the Hub's data set .* corpus:train"),
        ("corpsu.txt", r"Corpus corpsu\.txt: no such file \(did you mean corpus\.txt\?\)"),
    ],
)
def test_a_file_that_is_meant_is_named_before_anything_is_loaded(folder: Path, name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_names(DataRecipe(files=name))


@pytest.mark.parametrize("name", ["corpsu", "corpus:train", "somebody/corpus"])
def test_a_hub_that_does_not_answer_is_waited_for_a_few_seconds(
    folder: Path, recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(hub_reach, "PATIENCE", 0.2)
        began = time.monotonic()
        meant = "" if "/" in name else r" \(did you mean corpus\.txt\?\)"
        with pytest.raises(InputError, match=rf"'{name}' is not a file here{meant}, .* the Hub cannot be reached"):
            load_corpus(recipe(name))
        assert time.monotonic() - began < 5


def test_a_link_to_nowhere_is_told_and_not_left_out(folder: Path, recipe: MakeRecipe) -> None:
    for name in ("a.txt", "loop"):
        (folder / name).symlink_to(name)
        with pytest.raises(InputError, match=f"{name} is a link that leads to no file; fix it"):
            load_corpus(recipe(name))
    with pytest.raises(InputError, match=r"Corpus \*\.txt: \S+/a\.txt is a link that leads to no file"):
        load_corpus(recipe("*.txt"))


def test_links_that_go_round_are_told_and_others_followed(folder: Path, recipe: MakeRecipe) -> None:
    (folder / "data" / "a").mkdir(parents=True)
    (folder / "other").mkdir()
    (folder / "other" / "x.txt").write_text("two\n")
    (folder / "data" / "a" / "other").symlink_to("../../other")
    assert sentences_of(recipe("data/**/*.txt")) == ["two"]
    (folder / "other" / "back").symlink_to("../data")
    (folder / "other" / "again").symlink_to("../data")
    with pytest.raises(InputError, match=r"/data/a/other/(back|again) is a link that leads back to a folder above it"):
        load_corpus(recipe("data/**/*.txt"))
