"""The real huggingface_hub against a Hub of our own, on this machine, that writes down what it is asked."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import ModelCard, constants

from diffcse_scale.export.command import ExportOptions, export_model, push_run
from diffcse_scale.foundation.errors import InputError
from diffcse_scale.foundation.ownership import MARK
from tests.support.hand_made_run import write_run
from tests.support.own_hub import TOKEN, Hub, own_hub


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub on this machine, and a user who is logged in to it."""
    with own_hub() as found:
        monkeypatch.setattr(constants, "ENDPOINT", found.address)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield found


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_folder_is_uploaded_as_it_is_to_a_private_repository(hub: Hub, run: Path, tmp_path: Path) -> None:
    export_model(run, tmp_path / "out", ExportOptions(normalize=True, repo="alice/mine", private=True))

    (created,) = hub.created
    assert created["name"] == "mine"
    assert created.get("private") is True or created.get("visibility") == "private"
    assert hub.committed == files_of(tmp_path / "out")
    assert 'SentenceTransformer("alice/mine")' in hub.committed["README.md"].decode()


def test_what_an_earlier_upload_left_goes_and_other_files_stay(hub: Hub, run: Path, tmp_path: Path) -> None:
    hub.already_there = ["onnx/model.onnx", "2_Dense/model.safetensors", "model.safetensors", "notes.md"]
    hub.already_there += ["onnx/notes.md", "adapter.safetensors", MARK]
    export_model(run, tmp_path / "out", ExportOptions(repo="lab/mine"))

    assert sorted(hub.deleted) == ["2_Dense/model.safetensors", "onnx/model.onnx"]
    assert "model.safetensors" in hub.committed


def test_a_model_that_is_there_and_not_ours_needs_overwrite(hub: Hub, run: Path, tmp_path: Path) -> None:
    hub.already_there = ["README.md", "model.safetensors"]
    with pytest.raises(InputError, match=r"alice/mine holds a model that was not uploaded by this program; .*--overw"):
        export_model(run, tmp_path / "out", ExportOptions(repo="alice/mine"))
    assert hub.committed == {} and not (tmp_path / "out").exists()

    hub.tags = ["bert", "diffcse-scale"]  # the card of an upload by an earlier version
    export_model(run, tmp_path / "out", ExportOptions(repo="alice/mine"))
    hub.tags = []
    export_model(run, tmp_path / "out", ExportOptions(repo="alice/mine", overwrite=True))
    assert "model.safetensors" in hub.committed


def test_what_others_have_put_into_the_folder_is_not_uploaded(hub: Hub, run: Path, tmp_path: Path) -> None:
    export_model(run, tmp_path / "out", ExportOptions())
    (tmp_path / "out" / "secret.txt").write_text("mine")
    export_model(run, tmp_path / "out", ExportOptions(repo="alice/mine"))
    assert "secret.txt" not in hub.committed and "1_Pooling/config.json" in hub.committed


def test_the_backbones_licence_is_asked_of_the_hub_where_its_files_do_not_tell_it(hub: Hub, tmp_path: Path) -> None:
    run = write_run(tmp_path / "mine", encoder="some/bert")
    export_model(run, tmp_path / "out", ExportOptions(repo="alice/mine"))

    data = ModelCard.load(tmp_path / "out" / "README.md").data
    assert (data.base_model, data.license) == ("some/bert", "apache-2.0")


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        ("no token", "You are not logged in"),
        ("wrong token", "does not accept the token"),
        ("offline", "HF_HUB_OFFLINE switches the Hub off"),
        ("no network", "cannot be reached"),
        ("somebody else's", "logged in as alice, who may write to alice, lab"),
        ("a token to read", "the token of alice can only read; log in with another"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_written(hub, run, tmp_path, monkeypatch, mistake, message) -> None:
    repo = "bob/mine" if mistake == "somebody else's" else "alice/mine"
    if mistake == "no token":
        monkeypatch.delenv("HF_TOKEN")
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "absent"))
        monkeypatch.setattr(constants, "HF_STORED_TOKENS_PATH", str(tmp_path / "absent"))
    elif mistake == "wrong token":
        monkeypatch.setenv("HF_TOKEN", "hf_another")
    elif mistake == "a token to read":
        hub.role = "read"
    elif mistake == "offline":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    elif mistake == "no network":
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nothing listens there

    with pytest.raises(InputError, match=message):
        export_model(run, tmp_path / "out", ExportOptions(repo=repo))

    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine"]
    assert hub.created == []


def test_a_refused_upload_is_one_sentence_and_the_folder_stays(hub: Hub, run: Path, tmp_path: Path) -> None:
    hub.refuse_commits = True
    with pytest.raises(InputError, match=r"The Hub refuses alice/mine: .*403"):
        export_model(run, tmp_path / "out", ExportOptions(repo="alice/mine"))
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_the_model_of_a_run_is_uploaded_as_export_does_it_and_no_folder_stays(
    hub: Hub, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(files_of(run))
    push_run(run, "alice/mine")
    uploaded = dict(hub.committed)
    assert capsys.readouterr().out == f"On the Hub: {hub.address}/alice/mine\n"
    assert hub.created[0].get("private") is True or hub.created[0].get("visibility") == "private"
    assert sorted(files_of(run)) == before
    export_model(run, tmp_path / "again" / "mine", ExportOptions(repo="alice/mine", private=True))
    assert uploaded == hub.committed and 'SentenceTransformer("alice/mine")' in uploaded["README.md"].decode()


def test_a_run_whose_upload_fails_says_how_to_repeat_it(
    hub: Hub, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.refuse_commits = True
    push_run(run, "alice/mine")
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith("The model is not on the Hub (The Hub refuses alice/mine: ")
    command = f"diffcse-scale export --model {run} --output mine --push-to-hub alice/mine --private"
    assert said.endswith(f"; to upload it: {command}")
