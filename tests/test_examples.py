"""Every example runs as its first lines say, and improves its encoder."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from sentence_transformers import SentenceTransformer

from diffcse_scale.export import export_sentence_transformer
from diffcse_scale.rendezvous import free_port
from tests.support.launch import ROOT, environment
from tests.support.tiny_models import tiny_bert, tiny_tokenizer

pytestmark = pytest.mark.slow


def run(name: str, *arguments: str, launcher: tuple[str, ...] = (), **variables: str) -> str:
    done = subprocess.run(
        [sys.executable, *launcher, str(ROOT / "examples" / name), *arguments],
        env={**environment(), **variables},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def assert_improved(output: str) -> None:
    before, after = (float(score) for score in re.findall(r"Spearman x 100 (?:before|after): +([\d.]+)", output))
    assert after > before + 1, output


def test_plain_pytorch():
    assert_improved(run("plain_pytorch.py"))


@pytest.mark.parametrize("processes", [1, 2])
def test_two_towers(processes: int):
    torchrun = ("-m", "torch.distributed.run", f"--nproc_per_node={processes}", f"--master_port={free_port()}")
    printed = run("two_towers.py", launcher=torchrun if processes > 1 else ())
    (found,) = re.findall(r"before: ([\d.]+) %, after: ([\d.]+) %, on (\d) processes", printed)
    assert float(found[1]) > float(found[0]) + 20 and int(found[2]) == processes, printed


def test_sentence_transformers_trainer(tmp_path: Path):
    assert_improved(run("sentence_transformers_trainer.py", str(tmp_path / "model")))
    SentenceTransformer(str(tmp_path / "model"), device="cpu")


def test_notebook_and_the_same_call_again(tmp_path: Path):
    arguments = ("notebook.py", str(tmp_path / "run"))
    first = run(*arguments, DIFFCSE_CACHE=str(tmp_path / "cache"))
    assert "\n40/40 " in first
    again = run(*arguments, DIFFCSE_CACHE=str(tmp_path / "cache"))
    assert "step" not in again.split("has finished")[1] and "has finished" in again
    assert first.splitlines()[-1] == again.splitlines()[-1]


def test_hook(tmp_path: Path):
    """The hook lies beside the example, which is no folder of the package: the process that trains has to find it."""
    printed = run("hook.py", str(tmp_path / "run"), DIFFCSE_CACHE=str(tmp_path / "cache"))
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 4
    assert f"largest gradient norm: {max(row['gradient_norm'] for row in rows):.3f}" in printed


class _Served(BaseHTTPRequestHandler):
    """/v1/embeddings as servers answer it, their lengths their own; `model` is the one that is served."""

    model: SentenceTransformer

    def do_POST(self) -> None:
        texts = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["input"]
        rows = [{"index": index, "embedding": row} for index, row in enumerate((3 * self.model.encode(texts)).tolist())]
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({"data": rows[::-1]}).encode())


@pytest.mark.parametrize(("served", "code"), [("mean", 0), ("cls", 1)])
def test_served(tmp_path: Path, served: str, code: int):
    """The folder has mean pooling; a server that pools otherwise is noticed."""
    for pooling in ("mean", "cls"):
        export_sentence_transformer(tiny_bert(), tiny_tokenizer(), pooling, 8, tmp_path / pooling)
    _Served.model = SentenceTransformer(str(tmp_path / served), device="cpu")
    with ThreadingHTTPServer(("127.0.0.1", 0), _Served) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        command = [sys.executable, str(ROOT / "examples" / "served.py"), str(tmp_path / "mean")]
        address = f"http://127.0.0.1:{server.server_port}"
        done = subprocess.run([*command, address], env=environment(), capture_output=True, text=True)
        server.shutdown()
    assert done.returncode == code and "smallest cosine: " in done.stdout, done.stdout + done.stderr


def test_there_is_a_test_for_every_example():
    names = {file.stem for file in (ROOT / "examples").glob("*.py")}
    assert names == {"plain_pytorch", "two_towers", "sentence_transformers_trainer", "notebook", "hook", "served"}
