"""A Hub of our own, on this machine, that writes down what it is asked."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

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
        self.role = "write"
        self.address = ""


class Handler(BaseHTTPRequestHandler):
    hub: Hub

    def do_GET(self) -> None:
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.answer(401, {"error": "Invalid user token."})
        elif self.path == "/api/whoami-v2":
            token = {"accessToken": {"displayName": "own", "role": self.hub.role}}
            self.answer(200, {"type": "user", "name": "alice", "orgs": [{"name": "lab"}], "auth": token})
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


@contextmanager
def own_hub() -> Iterator[Hub]:
    """Inside, it listens at `address`."""
    found = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("OwnHandler", (Handler,), {"hub": found}))
    found.address = f"http://127.0.0.1:{server.server_port}"
    Thread(target=server.serve_forever, daemon=True).start()
    yield found
    server.shutdown()
    server.server_close()
