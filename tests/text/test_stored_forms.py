"""JSON arrays, Parquet types and damaged files: what is text is read, and of what is not, the file is named."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pyarrow
import pyarrow.parquet
import pytest

from diffcse_scale.encoding.rows import open_rows
from diffcse_scale.foundation.errors import InputError
from diffcse_scale.recipe import DataRecipe
from diffcse_scale.text import json_objects
from diffcse_scale.text.corpus import load_corpus, read_corpus
from tests.support.corpus_files import SENTENCES, MakeRecipe, sentences_of

OBJECTS = [{"id": index, "text": text, "more": ["[", {"}": "]"}]} for index, text in enumerate(SENTENCES)]
ARRAYS = {
    "of json.dump": json.dumps(OBJECTS),
    "indented": "\n  " + json.dumps(OBJECTS, indent=2) + "\n\n",
    "of pandas": pandas.DataFrame(OBJECTS).to_json(orient="records"),
    "unescaped": json.dumps(OBJECTS, ensure_ascii=False),
}


@pytest.mark.parametrize("chunk", [1, 7, 2**20])
@pytest.mark.parametrize("array", ARRAYS)
def test_an_array_of_objects_is_read_however_it_is_cut(
    tmp_path: Path, recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch, array: str, chunk: int
) -> None:
    monkeypatch.setattr(json_objects, "CHUNK", chunk)
    path = tmp_path / "a.json"
    path.write_text(ARRAYS[array], encoding="utf-8")
    assert [json.loads(line) for line in json_objects.lines_of(str(path))] == OBJECTS
    assert sentences_of(recipe(path)) == SENTENCES


BROKEN_ARRAYS = {
    "cut off": ('[{"text": "one"}, {"text": "t', "object 2 of its array: the file ends before the array does"),
    "cut between objects": ('[{"text": "one"}', "object 1 of its array: the file ends before"),
    "not JSON": ('[{"text": "one"}, {text: "two"}, {"text": "' + "x" * 99, "object 2 of its array: expecting property"),
    "something follows": ('[{"text": "one"}]\n[{"text": "two"}]', "follows its JSON array; .* one object per line"),
    "no objects": ('["one", "two"]', "no JSON object in object 1, nor in those after it; write one object per line"),
    "a number among them": ('[{"text": "one"}, 2]', r"a\.json, object 2: not a JSON object with text in text"),
    "deep": ('[{"text": "one"}, ' + "[" * 99_999, "object 2 of its array: nested too deeply"),
    "a deep line": (
        '{"text": "one"}\n{"text": ' + "[" * 99_999 + "]" * 99_999 + "}",
        r"a\.json, line 2: not a JSON obj",
    ),
    "an indented object": ('{\n "text": "one"\n}', "no JSON object in line 1, nor in those after it"),
    "columns": ('{"text": {"0": "one"}}', r"no column of text; its columns are text \(objects\)\.$"),
    "numbers": ('{"text": 1}\n{"text": [2]}', r"no column of text; its columns are text \(lists or numbers\)\.$"),
    "empty": ("[]", "is empty"),
}


@pytest.mark.parametrize("case", BROKEN_ARRAYS)
def test_of_an_array_that_is_none_the_place_is_named(tmp_path: Path, recipe: MakeRecipe, case: str) -> None:
    content, message = BROKEN_ARRAYS[case]
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(InputError, match=message):
        load_corpus(recipe(tmp_path / "a.json"))


def undecodable() -> pyarrow.Array:
    offsets_and_bytes = pyarrow.array([b"one", b"tw\xffo", b"three"], pyarrow.binary()).buffers()
    return pyarrow.Array.from_buffers(pyarrow.string(), 3, offsets_and_bytes)


COLUMNS: dict[str, tuple[list[Any], list[str]]] = {
    "a first shard of nulls": ([pyarrow.nulls(2), pyarrow.array(["one", "two"])], ["one", "two"]),
    "categories of pandas": ([pandas.Series(["one", "two", "one"], dtype="category")], ["one", "two"]),
    "categories in one shard": ([pyarrow.array(["one"]).dictionary_encode(), pyarrow.array(["two"])], ["one", "two"]),
    "long strings and views": (
        [pyarrow.array(["one"], pyarrow.large_string()), pyarrow.array(["two"], pyarrow.string_view())],
        ["one", "two"],
    ),
    "bytes that are not UTF-8": ([undecodable()], ["one", "three"]),
    "a shard without rows": ([pyarrow.array([], pyarrow.string()), pyarrow.array(["one"])], ["one"]),
}


def write(folder: Path, columns: list[Any]) -> None:
    for index, column in enumerate(columns):
        table = pyarrow.Table.from_pandas(pandas.DataFrame({"text": column})) if hasattr(column, "cat") else None
        pyarrow.parquet.write_table(table or pyarrow.table({"text": column}), folder / f"{index}.parquet")


@pytest.mark.parametrize("case", COLUMNS)
def test_text_is_read_however_parquet_stores_it(
    tmp_path: Path, recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    monkeypatch.setenv("DIFFCSE_CACHE", str(tmp_path / "cache"))
    columns, texts = COLUMNS[case]
    write(tmp_path, columns)
    corpus, report = read_corpus(recipe(tmp_path / "*.parquet"))
    assert corpus["text_0"][:] == texts
    assert report.read == sum(map(len, columns))
    assert len(open_rows([str(tmp_path / "*.parquet")]).read(0, report.read)[0]) == report.read


NO_TEXT = {
    "numbers": ([pyarrow.array([1])], r"no column of text; its columns are text \(int64\)\.$"),
    "categories of numbers": ([pyarrow.array([1]).dictionary_encode()], r"text \(int64\)\.$"),
    "numbers in a later shard": (
        [pyarrow.array(["one"]), pyarrow.array([1])],
        r"1\.parquet: column 'text' holds int64",
    ),
    "no rows": ([pyarrow.array([], pyarrow.string())], "is empty"),
}


@pytest.mark.parametrize("case", NO_TEXT)
def test_of_what_is_no_text_the_type_is_told(tmp_path: Path, recipe: MakeRecipe, case: str) -> None:
    columns, message = NO_TEXT[case]
    write(tmp_path, columns)
    with pytest.raises(InputError, match=message):
        load_corpus(recipe(tmp_path / "*.parquet"))


def damaged(name: str) -> bytes:
    if name.endswith(".gz"):
        return gzip.compress(os.urandom(9999).hex().encode())[:4000]
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.table({"text": np.random.default_rng(0).bytes(9999).hex().split("0")}), sink)
    content = bytearray(sink.getvalue().to_pybytes())
    content[50:900] = bytes(850)
    return bytes(content)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("name", ["a.txt.gz", "a.parquet"])
def test_one_damaged_file_among_many_is_named(tmp_path: Path, recipe: MakeRecipe, name: str, workers: int) -> None:
    whole = {"a.txt.gz": gzip.compress(b"one\n")}.get(name)
    for index in range(6):
        path = tmp_path / name.replace("a", str(index), 1)
        if index == 4:
            path.write_bytes(damaged(name))
        elif whole:
            path.write_bytes(whole)
        else:
            pyarrow.parquet.write_table(pyarrow.table({"text": ["one"]}), path)
    with pytest.raises(InputError, match=r"^Corpus file \S*/4\.\S+ cannot be read as \w+: .+\.$") as refusal:
        load_corpus(recipe(tmp_path / f"*{Path(name).suffix}", workers=workers))
    assert "\n" not in str(refusal.value) and refusal.value.__cause__ is None


@pytest.mark.parametrize(("given", "read"), [("text", ["text"]), (2, ["2"]), ([1, "b"], ["1", "b"]), (None, None)])
def test_one_column_needs_no_list(given: object, read: list[str] | None) -> None:
    assert DataRecipe.model_validate({"files": "a.csv", "columns": given}).columns == read
