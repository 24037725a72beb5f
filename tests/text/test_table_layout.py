"""A table says its separator and its header beyond doubt, or somebody is asked; no sentence is lost or run together."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from transformers import PreTrainedTokenizerFast

from diffcse_scale.encoding.rows import open_rows
from diffcse_scale.foundation.errors import InputError
from diffcse_scale.recipe import SEPARATORS, DataRecipe
from diffcse_scale.text.sources import check_names
from diffcse_scale.text.tokens import tokenize
from tests.support.corpus_files import SENTENCES, MakeRecipe, sentences_of

TEXTS = [*(f"Der Kunde {number}, der wartet; heute." for number in range(20)), *SENTENCES, "a|b", "two\nlines", "x\ty"]


def written(separator: str, header: bool, texts: list[str], **options: Any) -> str:
    """By the standard library."""
    file = io.StringIO()
    writer = csv.writer(file, delimiter=separator, **options)
    writer.writerows(([["id", "text"]] if header else []) + [[number, text] for number, text in enumerate(texts)])
    return file.getvalue()


@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
@pytest.mark.parametrize("separator", SEPARATORS)
def test_a_header_that_names_a_known_column_says_the_separator(
    tmp_path: Path, recipe: MakeRecipe, separator: str, quoting: int
) -> None:
    path = tmp_path / "sheet.csv"
    path.write_text(written(SEPARATORS[separator], True, TEXTS, quoting=quoting))
    assert sentences_of(recipe(path)) == TEXTS
    assert open_rows([str(path)]).read(0, len(TEXTS))[0] == TEXTS
    assert sentences_of(recipe(path, separator=separator, columns="text")) == TEXTS


@pytest.mark.parametrize("separator", ["comma", "semicolon"])
def test_a_table_without_a_header_keeps_its_first_row(tmp_path: Path, recipe: MakeRecipe, separator: str) -> None:
    path = tmp_path / "sheet.csv"
    path.write_text(written(SEPARATORS[separator], False, TEXTS))
    with pytest.raises(InputError, match=r"its first row, '0[;,] Der Kunde 0.*set data\.header=false"):
        sentences_of(recipe(path))
    assert sentences_of(recipe(path, header=False, columns=2)) == TEXTS
    assert open_rows([str(path)], header=False, column="2").read(0, 1)[0] == TEXTS[:1]


def test_the_first_rows_are_shown_as_they_were_understood(
    tmp_path: Path, recipe: MakeRecipe, tokenizer: PreTrainedTokenizerFast
) -> None:
    path = tmp_path / "sheet.csv"
    path.write_text("id;text\nw5;\nw6;w1 w2\nw7;" + "w100 " * 99 + "\nw8;w3\nw9;w4\n")
    assert tokenize(recipe(path), [tokenizer]).first == ["w1 w2", "w100 " * 16 + "...", "w3"]
    pairs = recipe(path, columns=["id", "text"], header=True)
    assert tokenize(pairs, [tokenizer]).first[0] == "w6   |   w1 w2"


def test_strict_names_the_line_whatever_the_layout(tmp_path: Path, recipe: MakeRecipe) -> None:
    path = tmp_path / "sheet.csv"
    path.write_text("0;eins\n1;\n2;drei\n")
    with pytest.raises(InputError, match=r"sheet\.csv, line 2: empty"):
        sentences_of(recipe(path, header=False, columns=[2], strict=True))
    path.write_text("sep=;\n0;eins\n1;\n2;drei\n")
    with pytest.raises(InputError, match=r"sheet\.csv, line 3: empty"):
        sentences_of(recipe(path, header=False, columns=[2], strict=True))
    path.write_text("sep=;\n0;eins\n1;zwei;2\n")
    with pytest.raises(InputError, match=r"sheet\.csv, line 3: 3 fields under a header of 2"):
        sentences_of(recipe(path, header=False, columns=[2], separator=";"))


DECIDED = {
    "a title over numbers": ("review;stars\nGood.;5\nBad.;1\n", {}, ["Good.", "Bad."]),
    "decimal commas": ("text;score\nGood;0,5\nBad;1,5\n", {}, ["Good", "Bad"]),
    "a known column in capitals": ("ID,Text\na,one\nb,two\n", {"columns": "Text"}, ["one", "two"]),
    "the wanted column": ("kommentar;autor\neins;a\nzwei;b\n", {"columns": "kommentar"}, ["eins", "zwei"]),
    "one column": ("text\nno comma\na; b\n", {}, ["no comma", "a; b"]),
    "short rows": ("text,id\none\ntwo,2\n", {}, ["one", "two"]),
    "semicolons within the text": ("id,text\n1,a; b\n2,c; d\n", {}, ["a; b", "c; d"]),
    "Excel's line": ("sep=;\r\nid;text\r\n1;yes, sir\r\n2;no, sir\r\n", {}, ["yes, sir", "no, sir"]),
    "Excel's line, quoted": ('\ufeff"sep=|"\nid|text\n1|a; b\n2|c; d\n', {}, ["a; b", "c; d"]),
    "Excel's line over what would be asked": (
        "sep=;\n0;yes, sir\n1;no, sir\n",
        {"header": False, "columns": 2},
        ["yes, sir", "no, sir"],
    ),
    "Excel's line and another separator": ("sep=,\ntext;id\na,b;1\nc;2\n", {"separator": ";"}, ["a,b", "c"]),
    "a line for Excel that names nothing": ("sep=\ntext\n", {"header": False, "columns": 1}, ["sep=", "text"]),
    "a column called sep": ("sep,text\n1,one\n2,two\n", {}, ["one", "two"]),
    "another character": ("text~id\none~1\ntwo~2\n", {"separator": "~"}, ["one", "two"]),
}


@pytest.mark.parametrize("case", DECIDED)
def test_what_the_rows_leave_no_doubt_of_is_taken(tmp_path: Path, recipe: MakeRecipe, case: str) -> None:
    content, options, texts = DECIDED[case]
    (tmp_path / "sheet.csv").write_text(content, newline="")
    assert sentences_of(recipe(tmp_path / "sheet.csv", **options)) == texts


ASKED = {
    "two separators": ("sheet.csv", "0;yes, sir\n1;no, sir\n", {}, "comma or semicolon.*set data.separator"),
    "rows that differ": ("sheet.csv", "id;text\n1;a; b\n2;c\n", {}, "semicolon.*set data.separator"),
    "one column of text": ("sheet.csv", "Hello there.\nGood bye.\n", {}, "'Hello there.', may be a header or text"),
    "a missing number": ("sheet.csv", "n/a,A film.\n4,Another.\n", {}, "may be a header or text"),
    "tabs": ("sheet.tsv", "eins\tone\nzwei\ttwo\n", {}, "may be a header or text"),
    "the wanted column is not there": (
        "sheet.csv",
        "0,one\n1,two\n",
        {"columns": "text"},
        "no column 'text', only 0, on",
    ),
    "two columns of text": (
        "sheet.csv",
        "a,b\nc,d\n",
        {"header": False},
        "2 columns of text .* 1, 2: set data.columns",
    ),
    "text, not a table": (
        "sheet.txt",
        "a;b\n",
        {"separator": ";"},
        r"data\.separator applies to .* \.csv or \.tsv, but",
    ),
}


@pytest.mark.parametrize("case", ASKED)
def test_what_the_rows_leave_in_doubt_is_asked_for(tmp_path: Path, recipe: MakeRecipe, case: str) -> None:
    name, content, options, message = ASKED[case]
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=message):
        sentences_of(recipe(tmp_path / name, **options))


@pytest.mark.parametrize("header", [True, False])
@pytest.mark.parametrize("texts", [["one", "two\nlines"], ["one", 'He said "yes".'], TEXTS])
def test_a_tsv_file_that_is_quoted_like_csv_is_not_read_with_its_quotation_marks(
    tmp_path: Path, recipe: MakeRecipe, texts: list[str], header: bool
) -> None:
    path = tmp_path / "sheet.tsv"
    options = {"header": header, "columns": 2}
    for quoting in (csv.QUOTE_MINIMAL, csv.QUOTE_ALL):
        path.write_text(written("\t", header, texts, quoting=quoting))
        with pytest.raises(InputError, match=r"sheet\.tsv: its fields are quoted as in CSV, .* the ending \.csv"):
            sentences_of(recipe(path, **options))
        as_csv = path.rename(tmp_path / f"{quoting}.csv")
        assert sentences_of(recipe(as_csv, **options)) == texts


def test_a_sentence_of_a_tsv_file_may_have_quotation_marks(tmp_path: Path, recipe: MakeRecipe) -> None:
    texts = ['"All of it."', '"I am here.', 'You too."', '"Yes," he said.', 'an "" empty one', '""', '"']
    (tmp_path / "sheet.tsv").write_text("id\ttext\n" + "".join(f"{n}\t{text}\n" for n, text in enumerate(texts)))
    assert sentences_of(recipe(tmp_path / "sheet.tsv")) == texts
    (tmp_path / "short.tsv").write_text('text\tid\n"I am here.\nYou too."\t2\n"\nNo.\t4\n')
    assert sentences_of(recipe(tmp_path / "short.tsv")) == ['"I am here.', 'You too."', '"', "No."]


def test_a_layout_for_what_is_no_table_is_told_with_the_names(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n")
    with pytest.raises(InputError, match=r"data\.header applies to"):
        check_names(DataRecipe(files=str(tmp_path / "a.txt"), header=False))


def test_every_file_has_its_own_layout(tmp_path: Path, recipe: MakeRecipe) -> None:
    (tmp_path / "a.csv").write_text("id,text\n1,one\n")
    (tmp_path / "b.csv").write_text("text;id\ntwo;2\n")
    assert sentences_of(recipe(tmp_path / "*.csv")) == ["one", "two"]


def test_a_layout_that_is_asked_for_is_read_anew(tmp_path: Path, recipe: MakeRecipe) -> None:
    (tmp_path / "a.csv").write_text("text\none\n")
    assert sentences_of(recipe(tmp_path / "a.csv")) == ["one"]
    assert sentences_of(recipe(tmp_path / "a.csv", header=False)) == ["text", "one"]


@pytest.mark.parametrize("value", ["", ";;", '"', "\n", "colon", 7])
def test_a_separator_is_one_character(value: object) -> None:
    with pytest.raises(ValidationError, match="give comma, semicolon, tab, pipe, or one other character"):
        DataRecipe.model_validate({"files": "a.csv", "separator": value})


def test_what_looks_like_a_second_header_or_a_blank_before_quotation_marks_may_be_text(
    tmp_path: Path, recipe: MakeRecipe
) -> None:
    (tmp_path / "a.csv").write_text('text\none\ntext\n"two, three"\n')  # a column of words may hold its own name
    assert sentences_of(recipe(tmp_path / "a.csv")) == ["one", "text", "two, three"]
    (tmp_path / "b.csv").write_text('id,text\n1, "Yes."\n2,No.\n')
    assert sentences_of(recipe(tmp_path / "b.csv")) == ['"Yes."', "No."]


def test_an_object_with_text_of_its_own_is_a_row_whatever_lists_it_has(tmp_path: Path, recipe: MakeRecipe) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "A dog.", "entities": [{"at": 2}, {"at": 3}]}\n')
    assert sentences_of(recipe(tmp_path / "a.jsonl")) == ["A dog."]
