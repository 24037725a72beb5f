"""Columns of the input that `encode --keep-columns` carries along: as they are, row for row, in every format."""

from __future__ import annotations

import csv
import datetime
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from diffcse_scale.encoding import EncodeOptions, encode, load, work
from diffcse_scale.encoding.prompt import answer
from diffcse_scale.encoding.rows import open_rows
from diffcse_scale.foundation.errors import InputError
from diffcse_scale.text import hub_dataset, json_values
from tests.support.files import contents

Options = Callable[..., EncodeOptions]
KEPT = ["title", "id", "share"]


def table(sentences: list[str], first: int = 0) -> dict[str, list[Any]]:
    """Columns beside `body`: whole numbers beyond what a float holds, texts of digits, fractions, and nothing."""
    rows = range(first, first + len(sentences))
    return {
        "id": [2**53 + 1 + row for row in rows],
        "title": [None if row % 5 == 4 else f"00{row}" for row in rows],
        "body": sentences,
        "share": [row / 3 for row in rows],
    }


def write(file: Path, columns: dict[str, list[Any]]) -> Path:
    """In the format that the name ends in."""
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    if file.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.table(columns), file, row_group_size=7)
    elif file.suffix == ".jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif file.suffix == ".json":
        file.write_text(json.dumps(rows))
    else:
        with file.open("w", newline="", encoding="utf-8") as sink:
            writer = csv.DictWriter(sink, list(columns), delimiter="\t" if file.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    return file


def shards(folder: Path | str) -> pyarrow.Table:
    return pyarrow.concat_tables(map(pyarrow.parquet.read_table, sorted(Path(folder).glob("embeddings-*.parquet"))))


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl", "a.json", "a.csv", "a.tsv"])
def test_columns_are_kept_in_the_order_of_the_rows_with_the_types_that_the_format_has(
    options: Options, sentences: list[str], tmp_path: Path, name: str
) -> None:
    columns = table(sentences)
    encode(options(write(tmp_path / name, columns), column="body", keep_columns="title, id,share"), progress=False)
    found = shards(tmp_path / "out")
    assert found.column_names == ["row", *KEPT, "embedding"]
    as_text = name.endswith(("csv", "tsv"))
    for column in KEPT:
        expected = [("" if value is None else str(value)) if as_text else value for value in columns[column]]
        assert found[column].to_pylist() == expected
    if not as_text:
        assert [str(found[column].type) for column in KEPT] == ["string", "int64", "double"]
    assert found["row"].to_pylist() == list(range(103))


def test_a_hub_data_set_keeps_its_types(
    options: Options, sentences: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_dataset, "load_split", lambda *_: datasets.Dataset.from_dict(table(sentences)))
    encode(options("some/data", column="body", keep_columns=KEPT), progress=False)
    found = shards(tmp_path / "out")
    assert {name: found[name].to_pylist() for name in KEPT} == {name: table(sentences)[name] for name in KEPT}


def test_parquet_types_stay_and_categories_are_what_they_stand_for(tmp_path: Path) -> None:
    day, times = datetime.date(2026, 1, 2), pyarrow.array([1, None], pyarrow.timestamp("ms", "UTC"))
    columns = {
        "text": ["a", "b"],
        "day": [day, None],
        "when": times,
        "kind": pyarrow.array(["x", "y"]).dictionary_encode(),
        "small": pyarrow.array([1, 2], pyarrow.int8()),
        "tags": [["p"], []],
    }
    file = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table(columns), file)
    rows = open_rows([str(file)], "text", keep=list(columns)[1:])
    assert rows.kept is not None
    found = rows.kept.read(0, 2)
    assert [str(kind) for kind in found.schema.types] == [
        "date32[day]",
        "timestamp[ms, tz=UTC]",
        "string",
        "int8",
        "list<element: string>",
    ]
    assert found["day"].to_pylist() == [day, None] and found["kind"].to_pylist() == ["x", "y"]


def test_files_of_several_formats_have_one_type(sentences: list[str], tmp_path: Path) -> None:
    first = write(tmp_path / "b.jsonl", {"text": ["a", "b"], "id": [1, None]})
    second = write(tmp_path / "a.parquet", {"text": ["c"], "id": [2.5]})
    third = write(tmp_path / "c.parquet", {"text": ["d"], "id": pyarrow.nulls(1)})
    rows = open_rows([str(first), str(second), str(third)], keep=["id"])
    assert rows.kept is not None
    assert rows.kept.read(0, 4)["id"].to_pylist() == [1.0, None, 2.5, None]
    assert rows.kept.read(1, 3)["id"].to_pylist() == [None, 2.5]
    write(tmp_path / "c.csv", {"text": ["d"], "id": ["x"]})
    with pytest.raises(InputError, match=r"Column 'id' to keep holds int64 in .*b\.jsonl and string in .*c\.csv; give"):
        open_rows([str(first), str(tmp_path / "c.csv")], keep=["id"])


def test_numbers_that_the_type_of_all_files_cannot_hold_are_one_sentence(tmp_path: Path) -> None:
    whole = write(tmp_path / "a.parquet", {"text": ["a"], "id": [2**53 + 1]})
    double = write(tmp_path / "b.parquet", {"text": ["b"], "id": [0.5]})
    said = r"a\.parquet: column 'id' to keep holds values of int64 that double, its type in all files .*; write them as"
    with pytest.raises(InputError, match=said):
        open_rows([str(whole), str(double)], keep=["id"])
    write(whole, {"text": ["a"], "id": [2**53]})
    kept = open_rows([str(whole), str(double)], keep=["id"]).kept
    assert kept is not None and kept.read(0, 2)["id"].to_pylist() == [2.0**53, 0.5]


def test_malformed_lines_keep_their_place_and_text_is_made_readable(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(
        b'{"text": "a", "id": "1"}\nnonsense\n\n{"text": 3, "id": "\\ud800"}\n{"text": "b", "id": "\xff"}\n'
    )
    kept = open_rows([str(file)], keep=["id"]).kept
    assert kept is not None
    assert kept.read(0, 5)["id"].to_pylist() == ["1", None, None, "\ufffd", "\ufffd"]


def test_after_an_interruption_the_shards_are_the_same_bytes(
    options: Options, sentences: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(tmp_path / "a.jsonl", table(sentences))
    whole, broken = (
        options(file, column="body", keep_columns="id,title", output=str(tmp_path / name))
        for name in ("whole", "broken")
    )
    encode(whole, progress=False)
    real, written = work.write_shard, []

    def write_some(*arguments: Any) -> dict[str, Any]:
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(arguments[0])
        return real(*arguments)

    monkeypatch.setattr(work, "write_shard", write_some)
    with pytest.raises(KeyboardInterrupt):
        encode(broken, progress=False)
    monkeypatch.setattr(work, "write_shard", real)
    encode(broken, progress=False)
    assert contents(tmp_path / "broken") == contents(tmp_path / "whole")
    with pytest.raises(InputError, match=r"was begun with keep_columns \['id', 'title'\], not None"):
        encode(broken.model_copy(update={"keep_columns": None}), progress=False)


def test_search_shows_them_before_the_sentence(
    options: Options, sentences: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    encode(options(write(tmp_path / "a.csv", table(sentences)), column="body", keep_columns="title,id"), progress=False)
    answer(tmp_path / "out", [sentences[50]], top=2)
    best = capsys.readouterr().out.splitlines()[1]
    assert best.split(maxsplit=4) == ["1.0000", "50", "title=0050", f"id={2**53 + 51}", sentences[50]]
    assert load(tmp_path / "out").kept([50, 4, 50]) == [
        {"title": "0050", "id": str(2**53 + 51)},
        {"title": "", "id": str(2**53 + 5)},
        {"title": "0050", "id": str(2**53 + 51)},
    ]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.txt", "one\ntwo\n", "a.txt is plain text, which has no columns; leave --keep-columns out"),
        ("a.csv", "text,ids\none,1\n", "has no column 'id' (did you mean ids?) to keep; its columns are text, ids"),
        ("a.jsonl", '{"text": "a", "id": 1}\n{"text": "b", "id": "x"}\n', "'id' to keep holds text and whole numbers"),
        ("a.jsonl", '{"text": "a", "id": [1]}\n', "'id' to keep holds lists; give it values of one type"),
        ("a.jsonl", f'{{"text": "a", "id": {2**64}}}\n', "'id' to keep holds whole numbers that int64, its type"),
        ("a.jsonl", f'{{"text": "a", "id": {2**53 + 1}}}\n{{"text": "b", "id": 0.5}}\n', "that double, its type"),
    ],
)
def test_what_cannot_be_kept_is_one_sentence(tmp_path: Path, name: str, content: str, words: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError) as refused:
        open_rows([str(tmp_path / name)], keep=["id"])
    assert words in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"keep_columns": "id", "format": "npy"}, "keep_columns needs format parquet"),
        ({"keep_columns": "id,Row"}, "cannot keep row, because the shards' own columns are row, text, embedding"),
        (
            {"keep_columns": "id,text"},
            "cannot keep text, .*; for the sentences give --keep-text, another column rename",
        ),
        ({"keep_columns": "id,,title"}, "takes names separated by commas, each once"),
        ({"keep_columns": "id,id"}, "takes names separated by commas, each once"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options: Options, changes: dict[str, str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        options("a.csv", **changes)


def test_only_some_rows_are_in_memory_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path / "a.jsonl", {"text": ["a"] * 50, "id": list(range(50))})
    monkeypatch.setattr(json_values, "ROWS", 8)
    schema = pyarrow.schema([("id", pyarrow.int64())])
    assert [len(table) for table in json_values.tables(str(file), schema)] == [8] * 6 + [2]
    assert np.concatenate([table["id"] for table in json_values.tables(str(file), schema)]).tolist() == list(range(50))
