"""Remote addresses are read like files: every kind of address, through file systems that answer here."""

from __future__ import annotations

import gzip
import json
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
import zstandard
from huggingface_hub import HfFileSystem, constants

from diffcse_scale.encoding.rows import open_rows
from diffcse_scale.evaluation.tasks import load_sts
from diffcse_scale.foundation.errors import InputError
from diffcse_scale.recipe import EMBEDDED, DataRecipe
from diffcse_scale.recipe_file import load_recipe
from diffcse_scale.text.corpus import corpus_fingerprint, load_corpus
from diffcse_scale.text.remote import copy_files

MakeRecipe = Callable[..., DataRecipe]
LINES = ["A first one.", "Zweiter Satz: größer."]
TEXT = "".join(line + "\n" for line in LINES).encode()
PAIRS = b"4.5\tA man sings.\tA man is singing.\n0.5\tA dog.\tA bill.\n"
FORMS = {
    "a.txt": TEXT,
    "a.txt.gz": gzip.compress(TEXT),
    "a.txt.zst": zstandard.compress(TEXT),
    "a.jsonl": "".join(json.dumps({"text": line}) + "\n" for line in LINES).encode(),
}
RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


class Served:
    """A web server of a folder, and the paths that it was asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.asked = folder, list[tuple[str, str]]()
        asked = self.asked

        class Counting(Quiet):
            def send_head(self) -> Any:
                asked.append((self.command, self.path))
                return super().send_head()

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Counting, directory=str(folder)))
        self.address = f"http://127.0.0.1:{self.server.server_port}"


def _run(server: ThreadingHTTPServer) -> Iterator[None]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Served]:
    folder = tmp_path / "served"
    (folder / "STSB").mkdir(parents=True)
    (folder / "STSB" / "dev.tsv").write_bytes(PAIRS)
    for name, content in FORMS.items():
        (folder / name).write_bytes(content)
    served = Served(folder)
    yield from (served for _ in _run(served.server))


@pytest.fixture
def memory() -> Iterator[str]:
    system = fsspec.filesystem("memory")
    for name, content in {**FORMS, "STSB/dev.tsv": PAIRS}.items():
        system.pipe_file(f"/corpus/{name}", content)
    yield "memory://corpus"
    system.rm("/corpus", recursive=True)


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    pytest.importorskip("s3fs")
    server = pytest.importorskip("moto.server").ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    system = fsspec.filesystem("s3")
    system.mkdir("corpus")
    for name, content in {**FORMS, "STSB/dev.tsv": PAIRS}.items():
        system.pipe_file(f"corpus/{name}", content)
    yield "s3://corpus"
    system.rm("corpus", recursive=True)
    system.clear_instance_cache()
    server.stop()


class Hub(BaseHTTPRequestHandler):
    """The few answers of the Hub that a file system needs: there is any data set, with TEXT in the file asked for."""

    files: ClassVar = {**FORMS, "wiki1m_for_simcse.txt": TEXT}

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self, content: bytes, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        name = path.rpartition("/")[2]
        if "/resolve/" in path and name in self.files:
            self._answer(self.files[name])
        elif "/tree/" in path:
            rows = [
                {"type": "file", "path": name, "size": len(content), "oid": name}
                for name, content in self.files.items()
            ]
            self._answer(json.dumps(rows).encode())
        elif "/api/datasets/princeton-nlp/" in path:
            self._answer(json.dumps({"id": "princeton-nlp/datasets-for-simcse", "sha": "0" * 40}).encode())
        else:
            self._answer(b"{}", 404)

    do_HEAD = do_GET


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setitem(fsspec.config.conf, "hf", {"endpoint": endpoint})
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    HfFileSystem.clear_instance_cache()
    yield from ("hf://datasets/princeton-nlp/datasets-for-simcse" for _ in _run(server))
    HfFileSystem.clear_instance_cache()


@pytest.fixture(params=["memory", "web", "s3", "hub"])
def place(request: pytest.FixtureRequest) -> str:
    """A remote folder with FORMS in it."""
    found = request.getfixturevalue(request.param)
    return found.address if isinstance(found, Served) else found


def test_every_form_is_read_from_every_file_system(place: str, recipe: MakeRecipe) -> None:
    for name in FORMS:
        assert load_corpus(recipe(f"{place}/{name}"))["text_0"][:] == LINES


def test_a_glob_and_a_list_name_several_files(place: str, recipe: MakeRecipe) -> None:
    data = recipe(f"{place}/*.txt*", f"{place}/a.jsonl")
    names = [Path(name).name for name in copy_files(f"{place}/a.txt*", Path(data.cache_dir or ""))]
    assert names == ["a.txt", "a.txt.gz", "a.txt.zst"]
    assert load_corpus(data)["text_0"][:] == LINES
    with pytest.raises(InputError, match=r"/\*\.csv: no file matches\."):
        load_corpus(recipe(f"{place}/*.csv"))


def test_a_missing_file_is_refused_with_the_address(place: str, recipe: MakeRecipe) -> None:
    with pytest.raises(InputError) as raised:
        load_corpus(recipe(f"{place}/none.txt"))
    assert f"{place}/none.txt" in str(raised.value) and "\n" not in str(raised.value)


def test_encode_reads_remote_rows(place: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DIFFCSE_CACHE", str(tmp_path / "cache"))
    rows = open_rows([f"{place}/a.txt.gz"])
    assert rows.read(0, 2)[0] == LINES
    assert open_rows(rows.names).read(0, 2)[0] == LINES and "://" in rows.names[0]


@pytest.mark.parametrize("kind", ["memory", "web", "s3"])
def test_evaluation_data_are_a_remote_folder_or_file(
    kind: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DIFFCSE_CACHE", str(tmp_path / "cache"))
    found = request.getfixturevalue(kind)
    address = found.address if isinstance(found, Served) else found
    (of_folder,), (of_file,) = load_sts(address), load_sts(f"{address}/STSB/dev.tsv")
    assert of_folder.name == "STS-B dev" and of_file.split == "own"
    assert of_folder.pairs == of_file.pairs and len(of_file.pairs) == 2
    with pytest.raises(InputError, match=r"none"):
        load_sts(f"{address}/none")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_corpus_of_every_recipe_is_read(path: Path, hub: str, recipe: MakeRecipe) -> None:
    data = load_recipe(str(path), []).data
    if data.files == [EMBEDDED]:
        assert len(load_corpus(recipe(EMBEDDED, limit=100))) == 100
    else:
        assert all(name.startswith(hub) for name in data.files)
        assert load_corpus(recipe(*data.files, columns=data.columns))["text_0"][:] == LINES


def test_a_file_is_copied_once_by_those_who_need_it_at_the_same_time(web: Served, tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:  # the lock is one of files: it holds between threads as between processes
        copies = list(pool.map(lambda _: copy_files(f"{web.address}/a.txt", tmp_path / "cache"), range(4)))
    assert copies == copies[:1] * 4 and Path(*copies[0]).read_bytes() == TEXT
    assert web.asked.count(("GET", "/a.txt")) == 1


def test_the_cache_is_found_again_until_the_file_changes_and_wherever_it_lies(web: Served, recipe: MakeRecipe) -> None:
    address = f"{web.address}/a.txt"
    before = corpus_fingerprint(recipe(address))
    assert corpus_fingerprint(recipe(address, cache_dir=str(web.folder / "other"))) == before
    (web.folder / "a.txt").write_bytes(TEXT + b"A third one.\n")
    assert corpus_fingerprint(recipe(address)) != before
    assert len(load_corpus(recipe(address))) == 3


def test_a_copy_serves_without_a_network(web: Served, recipe: MakeRecipe) -> None:
    data = recipe(f"{web.address}/a.txt")
    load_corpus(data)
    web.server.shutdown()
    web.server.server_close()
    assert load_corpus(data)["text_0"][:] == LINES
    with pytest.raises(InputError, match=r"^http://127.*/a\.txt\.gz cannot be read: .*[Cc]onnect"):
        load_corpus(recipe(f"{web.address}/a.txt.gz"))


def test_a_damaged_copy_does_not_serve_without_a_network(web: Served, recipe: MakeRecipe, tmp_path: Path) -> None:
    data = recipe(f"{web.address}/a.txt")
    load_corpus(data)
    web.server.shutdown()
    web.server.server_close()
    (copy,) = tmp_path.glob("cache/remote/*/a.txt")
    copy.write_bytes(bytes(copy.stat().st_size))
    with pytest.raises(InputError, match=r"a\.txt cannot be read"):
        load_corpus(data)


def test_a_web_address_may_have_a_query(web: Served, recipe: MakeRecipe) -> None:
    assert load_corpus(recipe(f"{web.address}/a.txt.gz?download=true"))["text_0"][:] == LINES


def test_what_cannot_be_read_is_refused_in_one_sentence(memory: str, recipe: MakeRecipe) -> None:
    fsspec.filesystem("memory").pipe_file("/corpus/bad.jsonl", b"{\n")
    fsspec.filesystem("memory").pipe_file("/corpus/bad.zip", b"")
    cases = {
        memory: "is a folder",
        f"{memory}/bad.zip": "memory://.*unknown ending .zip",
        f"{memory}/bad.jsonl": "memory://.*bad.jsonl is not valid json",
        "nonsense://a.txt": "nonsense://a.txt cannot be read",
        "hf://datasets/a/b/c.txt": "hf://datasets/a/b/c.txt cannot be read: .*[Oo]ffline",
    }
    for address, message in cases.items():
        with pytest.raises(InputError, match=message):
            load_corpus(recipe(address))


@pytest.mark.parametrize(("scheme", "package", "extra"), [("s3", "s3fs", "s3"), ("gs", "gcsfs", "gcs")])
def test_a_missing_package_names_its_extra(
    scheme: str, package: str, extra: str, recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, scheme, raising=False)
    with pytest.raises(InputError, match=rf"{scheme}://b/a.txt .*pip install 'diffcse-scale\[{extra}\]'"):
        load_corpus(recipe(f"{scheme}://b/a.txt"))
