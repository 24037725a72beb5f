"""Every row of every format is one row, in the order of the files."""

from __future__ import annotations

import csv
import gzip
import json
import lzma
import pickle
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from diffcse_scale.encoding.rows import open_rows
from diffcse_scale.foundation.errors import InputError

TEXTS = ["a dog", "", 'a "cat", fast', "  ", "horse\tgrass", "naïve ☃", "last"]


def write(folder: Path, name: str) -> Path:
    """`TEXTS` in the format that the name ends in."""
    file = folder / name
    lines = "".join(f"{text}\n" for text in TEXTS).encode()
    if name.endswith(".gz"):
        file.write_bytes(gzip.compress(lines))
    elif name.endswith(".xz"):
        file.write_bytes(lzma.compress(lines))
    elif name.endswith(".zst"):
        file.write_bytes(zstandard.compress(lines))
    elif name.endswith(".txt"):
        file.write_bytes(lines)
    elif name.endswith(".jsonl"):
        file.write_text("".join(json.dumps({"id": 1, "body": text}) + "\n" for text in TEXTS))
    elif name.endswith(".csv"):
        with file.open("w", newline="", encoding="utf-8") as sink:
            writer = csv.writer(sink)
            writer.writerows([("id", "body"), *enumerate(TEXTS)])
    else:
        table = pyarrow.table({"id": range(len(TEXTS)), "body": TEXTS})
        pyarrow.parquet.write_table(table, file, row_group_size=2)
    return file


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.txt.xz", "a.txt.zst", "a.jsonl", "a.csv", "a.parquet"])
def test_no_row_is_lost(tmp_path: Path, name: str) -> None:
    column = None if ".txt" in name else "body"
    rows = open_rows([str(write(tmp_path, name))], column)
    assert len(rows) == len(TEXTS)
    texts, flaws = rows.read(0, len(TEXTS))
    assert texts == TEXTS
    assert flaws == {"empty": 2}
    assert rows.read(2, 5)[0] == TEXTS[2:5]


def test_rows_of_several_files_and_formats_follow_one_another(tmp_path: Path) -> None:
    files = [write(tmp_path, "b.jsonl"), write(tmp_path, "a1.parquet"), write(tmp_path, "a2.parquet")]
    rows = open_rows([str(files[0]), str(tmp_path / "a*.parquet")], "body")
    assert rows.read(0, len(rows))[0] == TEXTS * 3
    assert rows.read(5, 9)[0] == [*TEXTS[5:], *TEXTS[:2]]
    assert pickle.loads(pickle.dumps(rows)).read(12, 15)[0] == (TEXTS * 3)[12:15]


def test_lines_that_are_no_object_with_text_are_counted_and_keep_their_place(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    lines = ['{"text": "a"}', '{"text": 3}', "nonsense", "[1]", '{"text": null}', "{}", r'{"text": "half \ud800"}']
    file.write_text("\n".join([*lines, '{"text": "its own \ufffd"}']) + "\n")
    texts, flaws = open_rows([str(file)]).read(0, 8)
    assert texts == ["a", "", "", "", "", "", "half \ufffd", "its own \ufffd"]
    assert flaws == {"malformed": 3, "empty": 2, "undecodable": 1}


def test_nulls_of_a_table_are_empty_rows(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a", None, "b"]}), file)
    assert open_rows([str(file)]).read(0, 3) == (["a", "", "b"], {"empty": 1})


def test_a_column_of_numbers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="column 'id' holds int64, not text"):
        open_rows([str(write(tmp_path, "a.parquet"))], "id")


def test_the_name_of_a_link_says_the_format(tmp_path: Path) -> None:
    (tmp_path / "3f9ab1").write_bytes(write(tmp_path, "a.jsonl").read_bytes())
    (tmp_path / "train.jsonl").symlink_to("3f9ab1")
    assert open_rows([str(tmp_path / "train.jsonl")], "body").read(0, 3)[0] == TEXTS[:3]


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv"])
def test_a_file_that_holds_something_else_than_its_name_says_is_refused(tmp_path: Path, name: str) -> None:
    write(tmp_path, "a.parquet").rename(tmp_path / name)
    with pytest.raises(InputError, match=rf"{name} is named like text and seems to be Parquet"):
        open_rows([str(tmp_path / name)])


def test_surplus_fields_of_a_later_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "1.csv").write_text("text\nfine\n")
    (tmp_path / "2.csv").write_text("text\nhello, world\n")
    with pytest.raises(InputError, match=r"2\.csv, line 2: 2 fields under a header of 1"):
        open_rows([str(tmp_path / "*.csv")])


def test_a_json_line_with_a_key_twice_is_malformed(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a", "text": "b"}\n{"text": "c"}\n')
    assert open_rows([str(tmp_path / "a.jsonl")]).read(0, 2) == (["", "c"], {"malformed": 1})
