"""The real huggingface_hub against a Hub of our own, on this machine, that writes down what it is asked."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from huggingface_hub import ModelCard, constants

from diffcse_scale.export.command import ExportOptions, export_model
from diffcse_scale.foundation.errors import InputError
from diffcse_scale.foundation.ownership import MARK
from tests.support.hand_made_run import write_run

TOKEN = "hf_of_the_test"


class Hub:
    """What the handler below knows and has seen."""

    def __init__(self) -> None:
        self.created: list[dict[str, Any]] = []
        self.committed: dict[str, bytes] = {}
        self.deleted: list[str] = []
        self.already_there: list[str] = []
        self.tags: list[str] = []
        self.refuse_commits = False


class Handler(BaseHTTPRequestHandler):
    hub: Hub

    def do_GET(self) -> None:
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.answer(401, {"error": "Invalid user token."})
        elif self.path == "/api/whoami-v2":
            self.answer(200, {"type": "user", "name": "alice", "orgs": [{"name": "lab"}]})
        elif self.path.startswith("/api/models/some/bert"):
            self.answer(200, {"id": "some/bert", "tags": [], "cardData": {"license": "apache-2.0"}})
        elif "/tree/" in self.path:
            self.answer(200, [{"type": "file", "path": p, "size": 1, "oid": "0" * 40} for p in self.hub.already_there])
        else:
            siblings = [{"rfilename": path} for path in self.hub.already_there]
            self.answer(200, {"id": "alice/mine", "sha": "0" * 40, "tags": self.hub.tags, "siblings": siblings})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path == "/api/repos/create":
            self.hub.created.append(json.loads(body))
            self.answer(200, {"url": f"http://{self.headers['Host']}/alice/mine", "id": "alice/mine"})
        elif self.path.endswith("/preupload/main"):
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None}
                for file in json.loads(body)["files"]
            ]
            self.answer(200, {"files": files})
        elif self.path == "/api/validate-yaml":  # the front matter of the card
            self.answer(200, {"errors": [], "warnings": []})
        elif self.hub.refuse_commits:
            self.answer(403, {"error": "Storage limit reached."})
        else:
            for line in body.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    self.hub.committed[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
                elif entry["key"] == "deletedFile":
                    self.hub.deleted.append(entry["value"]["path"])
            self.answer(
                200, {"commitUrl": f"http://{self.headers['Host']}/alice/mine/commit/{'1' * 40}", "commitOid": "1" * 40}
            )

    def answer(self, status: int, content: Any) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if status == 403:
            self.send_header("X-Error-Message", content["error"])
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub on this machine, and a user who is logged in to it."""
    found = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("OwnHandler", (Handler,), {"hub": found}))
    Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield found
    server.shutdown()
    server.server_close()


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
        ("no token", "Nobody is logged in"),
        ("wrong token", "does not know the token"),
        ("offline", "switched off by HF_HUB_OFFLINE"),
        ("no network", "cannot be reached"),
        ("somebody else's", "logged in as alice, who may write to alice, lab"),
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
