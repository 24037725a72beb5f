"""Graded pairs in every format that people have them in are the same pairs."""

from __future__ import annotations

import csv
import gzip
import io
import json
from pathlib import Path

import pandas as pd
import pytest

from diffcse_scale.evaluation import load_sts
from diffcse_scale.foundation.errors import InputError

PAIRS = [
    (2.5, "a dog, that runs", "a cat; it sleeps"),
    (0.0, "7", "grass \ufffd"),
    (5.0, 'the "king"', "two\u2028lines"),
]
NAMES = ["score", "sentence1", "sentence2"]
Row = list[object]


def separated(rows: list[Row], separator: str) -> bytes:
    text = io.StringIO()
    if separator == "\t":  # which knows no quoting
        return "".join("\t".join(map(str, row)) + "\n" for row in rows).encode()
    csv.writer(text, delimiter=separator).writerows(rows)
    return text.getvalue().encode()


def lines(rows: list[Row]) -> bytes:
    names, *rest = rows
    return "".join(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in rest).encode()


def parquet(rows: list[Row]) -> bytes:
    return pd.DataFrame(rows[1:], columns=rows[0]).to_parquet()


WRITERS = {
    "own.tsv": lambda rows: separated(rows, "\t"),
    "own": lambda rows: separated(rows, "\t"),
    "own.tsv.gz": lambda rows: gzip.compress(separated(rows, "\t")),
    "own.csv": lambda rows: separated(rows, ","),
    "semicolons.csv": lambda rows: separated(rows, ";"),
    "own.csv.gz": lambda rows: gzip.compress(separated(rows, ",")),
    "own.jsonl": lines,
    "own.json": lambda rows: b"[" + b",".join(lines(rows).splitlines()) + b"]",
    "own.parquet": parquet,
}


# text may do without names; objects and Parquet have some, whatever they are
CASES = [(name, NAMES) for name in WRITERS]
CASES += [(name, ["gold similarity", "a", "b"] if "json" in name or "parquet" in name else []) for name in WRITERS]


@pytest.mark.parametrize("last", [False, True], ids=["score first", "score last"])
@pytest.mark.parametrize(("name", "header"), CASES)
def test_a_file_of_pairs_is_read_in_every_format(tmp_path: Path, name: str, header: list[str], last: bool) -> None:
    rows: list[Row] = [*([list(header)] if header else []), *map(list, PAIRS)]
    if last:
        rows = [[*row[1:], row[0]] for row in rows]
    file = tmp_path / name
    file.write_bytes(WRITERS[name](rows))
    (task,) = load_sts(file)
    assert task.pairs == PAIRS


def test_the_first_line_for_excel_names_the_separator_and_is_no_row(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("sep=;\n1,5;a, b;c\n")  # with commas there would be three columns as well
    with pytest.raises(InputError, match=r"a\.csv, row 1: the score '1,5' is not a finite number"):
        load_sts(tmp_path / "a.csv")
    (tmp_path / "a.csv").write_text("sep=;\n1.5;a, b, c;d\n0;e, f, g;h\n")
    assert load_sts(tmp_path / "a.csv")[0].pairs == [(1.5, "a, b, c", "d"), (0.0, "e, f, g", "h")]


def test_of_many_columns_those_are_taken_that_are_called_so(tmp_path: Path) -> None:
    rows: list[Row] = [["id", "Sentence2", "genre", "Label", "Sentence1"], [1, "b", "news", 3.5, "a"]]
    for name in ("own.csv", "own.jsonl", "own.parquet"):
        (tmp_path / name).write_bytes(WRITERS[name](rows) + (b"\n" if name != "own.parquet" else b""))  # an empty line
        assert load_sts(tmp_path / name)[0].pairs == [(3.5, "a", "b")]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", b"1,a,b\n2,c\n", r"a\.csv, row 2 has 2 fields, not score, sentence, sentence"),
        ("a.csv", b"sep=;\n1;a, or b;c\n2;d\n", r"a\.csv, row 2 has 2 fields, not score, sentence, sentence"),
        ("a.csv", b"1,a,b\n0.9,Hello, world,Bye\n", r"a\.csv, row 2 has 4 fields, not score, sentence, sentence"),
        ("a.csv", b"score,text1,text2\n0.9,Hello, world,Bye\n", r"a\.csv, row 2 has 4 fields, not score, text1, text2"),
        ("a.csv", b"a,b,x\nc,d,4\n", r"a\.csv, row 1: the score 'x' is not a finite number"),
        ("a.csv", b"1,a,b,c\n", "4 columns and no header; give three columns, .* or call them score, sentence1"),
        ("a.csv", b"id,score,text,other\n1,2,a,b\n", "the columns id, score, text, other; give three columns"),
        (
            "a.csv",
            b"premise,hypothesis,label\na,b,0\n",
            "labels of premise and .* are classes .* called score",
        ),
        ("a.jsonl", b'{"id": 1, "premise": "a", "hypothesis": "b", "label": 2}\n', "0 is entailment"),
        ("a.csv", b'1,"a,b\n', "a quotation mark is not closed"),
        ("a.csv", b"1,a,\xff\n", r"a\.csv, row 1 is not UTF-8"),
        ("a.jsonl", b'{"score": 1, "a": "x", "b": "caf\xe9"}\n', r"a\.jsonl, object 1 is not UTF-8"),
        ("a.json", b'[{"score": 1, "a": "half \\ud83d", "b": "x"}]', r"a\.json, object 1 .* half of a surrogate pair"),
        ("a.parquet", parquet([[*NAMES], [1.0, "a", "b\0"]]), r"a\.parquet, row 1 .* holds a NUL"),
        (
            "a.tsv.gz",
            gzip.compress(b'1\t"so ""it"" is"\ta\n', mtime=0),
            "quoted as in CSV, but between tabs .* text; give it",
        ),
        ("a.csv", b"", r"a\.csv is empty"),
        ("a.csv", b"score,sentence1,sentence2\n", r"a\.csv is empty"),
        ("a.jsonl", b'{"score": 1, "a": "x", "b": "y"}\n[1]\n', "object 2 is not a JSON object"),
        ("a.jsonl", b'{"score": 1, "a": "x", "b": "y"}\n{"score": 1, "a": "x"}\n', "object 2: a sentence is empty"),
        ("a.parquet", b"PAR1 and no more", r"a\.parquet cannot be read as parquet"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=said):
        load_sts(tmp_path / name)
