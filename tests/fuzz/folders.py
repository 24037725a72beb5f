"""Folders that the program reads: models, encoded text, runs; and options of `encode`."""

from __future__ import annotations

import functools
import re
import tempfile
from pathlib import Path

import numpy as np
from hypothesis import strategies as st

from diffcse_scale.encoding.folder import load
from diffcse_scale.export import export_sentence_transformer
from tests.fuzz.case import Answer, Case, Surface
from tests.fuzz.ingredients import NASTY_TEXT, damaged_folder
from tests.fuzz.texts import PLAIN, cleaned, corpora
from tests.support.command_line import diffcse_scale
from tests.support.files import contents, write_files
from tests.support.hand_made_run import write_run
from tests.support.tiny_models import tiny_bert, tiny_tokenizer

TEXT = "".join(row + "\n" for row in PLAIN).encode()


@functools.cache
def model_files() -> dict[str, bytes]:
    """A tiny random model of sentence-transformers' form."""
    with tempfile.TemporaryDirectory() as folder:
        export_sentence_transformer(tiny_bert(), tiny_tokenizer(), "mean", 16, Path(folder) / "model")
        return contents(Path(folder) / "model")


@functools.cache
def run_files() -> dict[str, bytes]:
    """A finished run, without its model."""
    with tempfile.TemporaryDirectory() as folder:
        files = contents(write_run(Path(folder) / "run"))
    return {name: content for name, content in files.items() if not name.startswith("model/")}


@functools.cache
def encoded_files(form: str, dtype: str) -> dict[str, bytes]:
    """Embeddings of `PLAIN` by that model, with the model and the text beside them."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_files(folder / "model", model_files())
        (folder / "text.txt").write_bytes(TEXT)
        options = ("--output", "out", "--format", form, "--dtype", dtype, "--window", 5, "--devices", "cpu")
        done = diffcse_scale("encode", "--model", "model", "--input", "text.txt", *options, cwd=folder)
        assert done.returncode == 0, done.stderr
        files = {f"out/{name}": content for name, content in contents(folder / "out").items()}
        return {name: content for name, content in files.items() if ".lock" not in name}


def _under(folder: str, files: dict[str, bytes]) -> dict[str, bytes]:
    return {f"{folder}/{name}": content for name, content in files.items()}


ENCODE = ("encode", "--devices", "cpu", "--output", "out", "--model", "model", "--input")


def _embeddings_are_sound(case: Case, answer: Answer) -> str:
    """As many rows as were written, and their numbers finite."""
    embeddings = load("out")
    if not all(np.isfinite(block).all() for _, block in embeddings.floats()):
        return "embeddings that are not finite"
    if case.truth is not None and len(embeddings) != case.truth:
        return f"{len(embeddings)} rows instead of {case.truth}"
    return ""


MODELS = Surface(
    "models",
    st.builds(
        lambda files: Case((*ENCODE, "text.txt"), {"text.txt": TEXT, **_under("model", files)}, truth=len(PLAIN)),
        st.deferred(lambda: damaged_folder(model_files())),
    ),
    _embeddings_are_sound,
)


@st.composite
def _encodings(draw: st.DrawFn) -> Case:
    name, content, _ = draw(corpora())
    options = {
        "--dtype": draw(st.sampled_from(["float32", "float16", "int8", "binary"])),
        "--format": draw(st.sampled_from(["parquet", "npy"])),
        "--window": draw(st.sampled_from(["1", "3", "8192"])),
        "--precision": draw(st.sampled_from(["auto", "float32", "bfloat16", "float16"])),
        "--max-length": draw(st.sampled_from(["3", "16", "40", "41", "1000", "0", "-3", "9" * 20])),
        "--batch-tokens": draw(st.sampled_from(["1", "1024", "0"])),
        "--pooling": draw(st.sampled_from(["mean", "cls", "last", "max", ""])),
        "--column": draw(st.sampled_from(["text", "id", "nothing"])),
        "--prompt-name": "query",
    }
    chosen = draw(st.lists(st.sampled_from(sorted(options)), max_size=3, unique=True))
    arguments = [*ENCODE, name]
    for option in chosen:
        arguments += [option, options[option]]
    if "--column" not in chosen and not name.startswith("corpus.txt"):
        arguments += ["--column", "text"]
    return Case(tuple(arguments), {name: content, **_under("model", model_files())})


ENCODINGS = Surface("encode", _encodings(), _embeddings_are_sound)


@st.composite
def _searches(draw: st.DrawFn) -> Case:
    form, dtype = draw(
        st.sampled_from([("parquet", "float32"), ("npy", "float16"), ("npy", "int8"), ("parquet", "binary")])
    )
    files = encoded_files(form, dtype)
    if draw(st.booleans()):
        files = draw(damaged_folder(files))
    queries = draw(st.lists(st.sampled_from(NASTY_TEXT).map(str.encode) | st.binary(max_size=12), max_size=3))
    top = draw(st.sampled_from(["1", "3", "100"]))
    more = {"text.txt": TEXT, **_under("model", model_files())}
    return Case(("search", "out", "--top", top, "--model", "model"), {**files, **more}, b"\n".join(queries) + b"\n")


ROW = re.compile(r"^ *(-?\d+\.\d+|-?nan|-?inf) +(\d+)  ?", re.MULTILINE)


def _rows_are_ranked(case: Case, answer: Answer) -> str:
    """Of each query no row twice, each of the folder, the nearest first and the lower number first of equal ones."""
    for block in re.split(r"^(?! *-?[\dni])", answer.out, flags=re.MULTILINE):
        found = [(float(cosine), int(row)) for cosine, row in ROW.findall(block)]
        if any(not -1.0001 <= cosine <= 1.0001 or row >= len(PLAIN) for cosine, row in found):
            return f"rows {found}"
    return ""


SEARCH = Surface("search", _searches(), _rows_are_ranked)


@st.composite
def _reports(draw: st.DrawFn) -> Case:
    files = draw(st.deferred(lambda: damaged_folder(run_files())))
    command = draw(
        st.sampled_from(
            [("report", "--no-models", "--output", "page.html"), ("status",), ("status", "--json"), ("summarize",)]
        )
    )
    return Case((*command, "run"), _under("run", files))


def _page_is_there(case: Case, answer: Answer) -> str:
    if case.arguments[0] == "report":
        page = Path("page.html").read_text(encoding="utf-8")
        return "" if page.rstrip().endswith("</html>") else "the page is cut"
    return "" if answer.out.strip() else "nothing was printed"


REPORTS = Surface("report", _reports(), _page_is_there)
assert cleaned(PLAIN) == PLAIN
