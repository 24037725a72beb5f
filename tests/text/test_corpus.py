"""Every accepted form gives the same sentences, and what is dropped is counted."""

from __future__ import annotations

import gzip
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diffcse_scale.foundation.errors import InputError
from diffcse_scale.text.corpus import CorpusReport, load_corpus, read_corpus
from diffcse_scale.text.duplicates import first_occurrences
from tests.support.corpus_files import (
    FORMS,
    SENTENCES,
    MakeRecipe,
    parquet,
    sentences_of,
)


@pytest.mark.parametrize("name", FORMS)
def test_every_form_of_file_gives_the_same_sentences(tmp_path: Path, recipe: MakeRecipe, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(FORMS[name](SENTENCES))
    assert sentences_of(recipe(path)) == SENTENCES


def test_files_of_several_forms_keep_their_order(tmp_path: Path, recipe: MakeRecipe) -> None:
    paths = [tmp_path / name for name in ("b.txt", "a.jsonl", "a.csv", "a.txt")]
    for index, path in enumerate(paths):
        path.write_bytes(FORMS[path.name.replace("b", "a")]([f"{path.name} {index} {line}" for line in range(3)]))
    expected = [f"{path.name} {index} {line}" for index, path in enumerate(paths) for line in range(3)]
    assert sentences_of(recipe(*paths)) == expected


def test_a_glob_gives_its_files_sorted_by_name(tmp_path: Path, recipe: MakeRecipe) -> None:
    for name in ("part-2.txt", "part-10.txt", "part-1.txt"):
        (tmp_path / name).write_text(f"{name}\n")
    (tmp_path / "other.txt").write_text("other\n")
    assert sentences_of(recipe(tmp_path / "part-*.txt")) == ["part-1.txt", "part-10.txt", "part-2.txt"]


def test_several_processes_give_the_same_as_one(tmp_path: Path, recipe: MakeRecipe) -> None:
    for part in range(2):
        lines = [f"sentence {part} {i}" if i % 10 else "repeated" for i in range(6000)]
        (tmp_path / f"{part}.txt").write_text("\n".join(lines))
    one = read_corpus(recipe(tmp_path / "*.txt", workers=1))
    two = read_corpus(recipe(tmp_path / "*.txt", workers=2, cache_dir=str(tmp_path / "other")))
    assert one[0]["text_0"][:] == two[0]["text_0"][:]
    assert one[1] == two[1] == CorpusReport(12000, 0, 0, 1199, 0, 10801)


def test_pairs_and_triples_take_the_columns_in_the_order_asked_for(tmp_path: Path, recipe: MakeRecipe) -> None:
    path = tmp_path / "nli.csv"
    path.write_text("hard_neg,sent0,label,sent1\nc1,a1,0,b1\nc2,a2,1,b2\nc1,a1,2,b1\n,a3,1,b3\n")
    corpus, report = read_corpus(recipe(path, columns=["sent0", "sent1", "hard_neg"]))
    assert corpus[:] == {"text_0": ["a1", "a2"], "text_1": ["b1", "b2"], "text_2": ["c1", "c2"]}
    assert report == CorpusReport(read=4, empty=1, undecodable=0, duplicate=1, unused=0, kept=2)


ANCHORS = {
    "by the usual names": ("positive,id,anchor\nb,1,a\n", None, "anchor positive"),
    "and a hard negative": ("sent0,sent1,hard_neg\na,b,c\n", None, "sent0 sent1 hard_neg"),
    "in capitals, with another separator": ("Query;Positive;Source\na;b;web\n", None, "Query Positive"),
    "names with commas between": ("x,y,z\nc,a,b\n", "y, z,x", "y z x"),
    "by place": ("x,id,y\nb,1,a\n", "3,1", "y x"),
    "by place, one": ("anchor,positive\nb,a\n", "2", "positive"),
    "by place, without a header": ("b;a\nd;c\n", "2,1", "2 1"),
    "a name that is a number": ("3,text,1\na,c,b\n", "3,1", "3 1"),
    "text before pairs": ("anchor,positive,text\nx,y,a\n", None, "text"),
    "graded, but asked for": ("sentence1,sentence2,score\na,b,5\n", "sentence1,sentence2", "sentence1 sentence2"),
}


@pytest.mark.parametrize("case", ANCHORS)
def test_columns_are_found_by_name_by_place_and_by_what_they_are_called_as_a_rule(
    tmp_path: Path, recipe: MakeRecipe, case: str
) -> None:
    content, asked, names = ANCHORS[case]
    path = tmp_path / "a.csv"
    path.write_text(content)
    header = False if content.startswith("b;a") else None
    corpus, report = read_corpus(recipe(path, columns=asked, header=header))
    assert " ".join(report.columns) == names
    assert list(corpus[0].values()) == ["a", "b", "c"][: len(report.columns)]


def test_the_start_says_which_column_is_what(tmp_path: Path, recipe: MakeRecipe) -> None:
    (tmp_path / "a.csv").write_text("neg,query,pos\nc,a,b\n")
    _, report = read_corpus(recipe(tmp_path / "a.csv"))
    assert report.pairs == "query is the sentence, pos is the positive, neg is the hard negative"
    (tmp_path / "b.txt").write_text("a\n")
    assert not read_corpus(recipe(tmp_path / "b.txt"))[1].pairs


def test_the_only_text_column_is_found_whatever_its_name(tmp_path: Path, recipe: MakeRecipe) -> None:
    path = tmp_path / "a.csv"
    path.write_text("positive,review\n1,good\n0,bad\n")
    assert sentences_of(recipe(path)) == ["good", "bad"]


def test_the_embedded_grammar_is_a_corpus(recipe: MakeRecipe) -> None:
    sentences = sentences_of(recipe("embedded", limit=50))
    assert len(set(sentences)) == 50
    assert sentences == sentences_of(recipe("embedded", limit=50))


DIRTY = "one\n\n  two \t\n\u00a0\nbroken \udcff byte\none\n two\nhalf \x00\nreplaced \ufffd\nthree\nfour\n"


def test_cleaning_counts_what_it_drops(tmp_path: Path, recipe: MakeRecipe) -> None:
    path = tmp_path / "dirty.txt"
    path.write_bytes(DIRTY.encode(errors="surrogateescape"))
    corpus, report = read_corpus(recipe(path, limit=3))
    assert corpus["text_0"][:] == ["one", "two", "replaced \ufffd"]
    assert report == CorpusReport(read=11, empty=2, undecodable=2, duplicate=2, unused=2, kept=3)


def test_half_of_the_rows_may_be_undecodable(tmp_path: Path, recipe: MakeRecipe) -> None:
    (tmp_path / "half.txt").write_bytes(b"one\ntw\xff\n")
    assert sentences_of(recipe(tmp_path / "half.txt")) == ["one"]


def test_what_was_dropped_is_reported_in_one_line(
    tmp_path: Path, recipe: MakeRecipe, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "dirty.txt"
    path.write_bytes(DIRTY.encode(errors="surrogateescape"))
    with caplog.at_level(logging.INFO, "diffcse_scale"):
        load_corpus(recipe(path))
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    expected = "11 rows read, 5 kept; dropped: 2 empty, 2 undecodable, 2 identical."
    assert record.message == f"Corpus {path}: {expected}"


def test_json_lines_are_cleaned_like_text(tmp_path: Path, recipe: MakeRecipe) -> None:
    path = tmp_path / "a.jsonl"
    lines = [b'{"text": "one"}', b"", b'{"text": null}', b"{}", b'{"text": "\xff"}', b'{"text": "\\ud800"}']
    path.write_bytes(b"\n".join([*lines, b'{"text": " one "}', b'{"text": "two \\ufffd"}']))
    corpus, report = read_corpus(recipe(path))
    assert corpus["text_0"][:] == ["one", "two \ufffd"]
    assert report == CorpusReport(read=8, empty=3, undecodable=2, duplicate=1, unused=0, kept=2)


@pytest.mark.parametrize(
    ("name", "content", "place"),
    [
        ("second.txt", b"two\nthree\n\nfour\n", "line 3: empty"),
        ("second.txt", b"two\nthr\xffee\n\n", "line 2: undecodable"),
        ("second.jsonl", b'{"text": "two"}\n\n', "line 2: empty"),
        ("second.csv", b'id,text\n1,"two\nlines"\n2,three\n3,\n', "line 5: empty"),
        ("second.csv", b"id,text\n1,two\n\n3,three\n4,\n", "line 3: empty"),
        ("second.tsv", b"id\ttext\n1\ttwo\n2\t\xff\n", "line 3: undecodable"),
        ("second.parquet", parquet(["two", " "]), "row 2: empty"),
    ],
)
def test_strict_names_file_and_line(tmp_path: Path, recipe: MakeRecipe, name: str, content: bytes, place: str) -> None:
    first = tmp_path / f"first{Path(name).suffix}"
    first.write_bytes(FORMS[f"a{first.suffix}"](["one", "two", "three", "four", "five", "six"]))
    second = tmp_path / name
    second.write_bytes(content)
    assert read_corpus(recipe(first, second))[1].kept >= 6
    with pytest.raises(InputError) as refusal:
        read_corpus(recipe(first, second, strict=True))
    assert f"{second}, {place}" in str(refusal.value)


@pytest.mark.parametrize("line", ['{"text": "open', '["text"]', '{"text": 5}'])
def test_a_malformed_json_line_stops_with_file_and_line(tmp_path: Path, recipe: MakeRecipe, line: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "fine"}\n' + line + "\n")
    with pytest.raises(InputError, match=r"a\.jsonl, line 2: not a JSON object with text in text"):
        load_corpus(recipe(path))


REFUSALS: dict[str, tuple[dict[str, bytes], dict[str, Any], str]] = {
    "missing file": ({}, {"files": "absent.txt"}, r"absent\.txt: no such file"),
    "missing folder": ({}, {"files": "/no/such/absent"}, "absent: no such file"),
    "glob without match": ({}, {"files": "*.jsonl"}, r"\*\.jsonl: no file matches"),
    "folder": ({"sub/a.txt": b"x"}, {"files": "sub"}, r"sub is a folder.*/sub/\*\.txt"),
    "unknown ending": ({"a.doc": b"x"}, {"files": "a.doc"}, r"unknown ending \.doc; known are \.txt"),
    "empty file": ({"a.txt": b""}, {"files": "a.txt"}, r"a\.txt is empty"),
    "empty archive": ({"a.txt.gz": gzip.compress(b"")}, {"files": "a.txt.gz"}, r"a\.txt\.gz is empty"),
    "header only": ({"a.csv": b"id,text\n"}, {"files": "a.csv", "columns": ["text"]}, r"a\.csv is empty"),
    "mostly in another encoding": (
        {"a.txt": "Die Straße ist lang.\nDer Weg ist kurz.\nEs ist schön.\n".encode("cp1252")},
        {"files": "a.txt"},
        r"a\.txt: 66\.7% of its rows are not UTF-8; convert it, for example with `iconv -f WINDOWS-1252 -t UTF-8`",
    ),
    "nothing usable": ({"a.txt": b"\n \n"}, {"files": "a.txt"}, "no usable sentence: 2 rows read, 0 kept"),
    "no text column": (
        {"a.csv": b"id,label\n1,2\n"},
        {"files": "a.csv"},
        r"no column of text; its columns are id \(numbers\), label \(numbers\)\.",
    ),
    "two text columns": (
        {"a.jsonl": b'{"left": "x", "right": "y"}\n'},
        {"files": "a.jsonl"},
        "2 columns of text .* its columns are left, right: set data.columns",
    ),
    "graded pairs": (
        {"a.csv": b"sentence1,sentence2,score\na,b,0\nc,d,5\n"},
        {"files": "a.csv"},
        "a column 'score' beside sentence1 and sentence2, .*; if they are, set data.columns=sentence1,sentence2",
    ),
    "lists of positives beside queries": (
        {"a.jsonl": b'{"query": "a", "pos": ["b"], "neg": ["c", "d"]}\n'},
        {"files": "a.jsonl"},
        "a column 'pos' beside query, which holds lists .* row for each text of a list, or set data.columns=query",
    ),
    "a list of negatives beside pairs": (
        {"a.jsonl": b'{"anchor": "a", "positive": "b", "negatives": ["c", "d"]}\n'},
        {"files": "a.jsonl"},
        "a column 'negatives' beside anchor and positive, which holds lists .* set data.columns=anchor,positive to",
    ),
    "several negatives": (
        {"a.csv": b"anchor,positive,negative_1,negative_2\na,b,c,d\n"},
        {"files": "a.csv"},
        "has negative_1, negative_2 beside anchor and positive, .* set data.columns=anchor,positive,negative_1 to use "
        "one, or data.columns=anchor,positive to use none",
    ),
    "a column twice": (
        {"a.csv": b"id,text\n1,a\n"},
        {"files": "a.csv", "columns": "text,2"},
        "column 'text' is asked for twice; give it once",
    ),
    "two that could be the anchor": (
        {"a.csv": b"anchor,query,positive\na,b,c\n"},
        {"files": "a.csv"},
        "3 columns of text .*: set data.columns",
    ),
    "a place beyond the last": (
        {"a.csv": b"anchor,positive\na,b\n"},
        {"files": "a.csv", "columns": "1,3"},
        "no column '3'; its columns are anchor, positive",
    ),
    "sentences beside pairs": (
        {"a.csv": b"anchor,positive\na,b\n", "b.txt": b"c\n"},
        {"files": ["a.csv", "b.txt"]},
        r"b.txt has text, and .*a.csv has anchor and positive; train on files of sentences, of pairs or of triples",
    ),
    "missing column": (
        {"a.parquet": parquet(["x"])},
        {"files": "a.parquet", "columns": ["sentence"]},
        "no column 'sentence'; its columns are id .int64., text: set",
    ),
    "column of numbers": (
        {"a.parquet": parquet(["x"])},
        {"files": "a.parquet", "columns": ["id"]},
        "column 'id' holds int64, not text",
    ),
    "damaged archive": (
        {"a.txt.gz": gzip.compress(b"many words\n" * 99)[:40]},
        {"files": "a.txt.gz"},
        r"a\.txt\.gz cannot be read as",
    ),
    "damaged parquet": ({"a.parquet": b"PAR1"}, {"files": "a.parquet"}, "a.parquet cannot be read as parquet"),
    "unquoted comma": (
        {"a.csv": b"id,text\n1,Well, yes\n"},
        {"files": "a.csv"},
        "line 2: 3 fields under a header of 2",
    ),
    "later unquoted comma": (
        {"a.csv": b"id,text\n1,no\n2,Well, yes\n"},
        {"files": "a.csv"},
        r"a\.csv, line 3: 3 fields under a header of 2",
    ),
    "unquoted comma in the first row of a later file": (
        {"a.csv": b"text\nfine\n", "b.csv": b"text\nhello, world\n"},
        {"files": ["a.csv", "b.csv"]},
        r"b\.csv, line 2: 2 fields under a header of 1; quote text",
    ),
    "unquoted comma, read in two processes": (
        {"a.csv": b"text\nfine\n", "b.csv": b"text\nhello, world\n"},
        {"files": ["a.csv", "b.csv"], "workers": 2},
        r"b\.csv, line 2: 2 fields under a header of 1",
    ),
    "surplus beyond the rows that choose the columns": (
        {"a.csv": b"text\n" + b"fine\n" * 1500, "b.csv": b"text\n" + b"fine\n" * 1500 + b"hello, world\n"},
        {"files": ["a.csv", "b.csv"], "workers": 2},
        r"b\.csv, line 1502: 2 fields under a header of 1",
    ),
    "tab in the text of a later file": (
        {"a.tsv": b"id\ttext\n1\tfine\n", "b.tsv": b"id\ttext\n1\thello\tworld\n"},
        {"files": ["a.tsv", "b.tsv"]},
        r"b\.tsv, line 2: 3 fields under a header of 2; take the tab out",
    ),
    "the header again, after a line end in quotation marks": (
        {"a.csv": b'id,text\n1,"one\ntwo"\nid,text\n2,three\n'},
        {"files": "a.csv"},
        r"a\.csv, line 4: the header is there again, .* remove this line",
    ),
    "quotation marks after blanks": (
        {"a.csv": b'id, text\n1, "a b"\n\n2, "c"\n'},
        {"files": "a.csv"},
        "in its column 2 a blank stands before each quotation mark",
    ),
    "rows in a list beside other text": (
        {"a.json": b'{"type": "FeatureCollection", "features": [{"text": "one"}, {"text": "two"}]}'},
        {"files": "a.json"},
        r"a\.json is one JSON object, whose 'features' holds the rows; write",
    ),
    "quotation mark not closed": ({"a.csv": b'text\n"one\ntwo\n'}, {"files": "a.csv"}, r"a\.csv, line 3: .*quoting"),
    "two columns of one name": ({"a.csv": b"text,text\na,b\n"}, {"files": "a.csv"}, "two columns called 'text'"),
    "ids beside another column, in a later row": (
        {"a.jsonl": b'{"id": "a1"}\n{"id": "a2", "review": "one"}\n'},
        {"files": "a.jsonl"},
        "2 columns of text .* its columns are id, review: set data.columns",
    ),
    "ids beside another column, in a later file": (
        {"a.jsonl": b'{"id": "a1"}\n', "b.jsonl": b'{"review": "one"}\n'},
        {"files": ["a.jsonl", "b.jsonl"]},
        "2 columns of text .* its columns are id, review: set data.columns",
    ),
    "text in one file, sentence in another": (
        {"a.jsonl": b'{"text": "one"}\n', "b.jsonl": b'{"sentence": "two"}\n'},
        {"files": ["a.jsonl", "b.jsonl"]},
        "one called sentence; its columns are text, sentence: set data.columns",
    ),
    "key twice in a JSON line": (
        {"a.jsonl": b'{"text": "one"}\n{"text": "two", "text": "three"}\n'},
        {"files": "a.jsonl"},
        r"a\.jsonl, line 2: .* a key is there twice",
    ),
    "headers that differ": (
        {"a.csv": b"text\nx\n", "b.csv": b"sentence\ny\n"},
        {"files": ["a.csv", "b.csv"]},
        r"a column called text and one called sentence",
    ),
    "no such Hub dataset": ({}, {"files": "nobody/nothing:train"}, "'nobody/nothing:train' is not a file here"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_unusable_input_is_refused_in_a_sentence(
    tmp_path: Path, recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    files, options, message = REFUSALS[case]
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    entries = [options["files"]] if isinstance(options["files"], str) else options["files"]
    if case != "no such Hub dataset":
        entries = [str(tmp_path / entry) for entry in entries]
    with pytest.raises(InputError, match=message) as refusal:
        load_corpus(recipe(*entries, **{key: value for key, value in options.items() if key != "files"}))
    assert "\n" not in str(refusal.value)


def test_the_first_of_equal_hashes_is_kept() -> None:
    hashes = np.random.default_rng(0).integers(-300, 300, 5000)
    seen: set[int] = set()
    expected = [not (value in seen or seen.add(value)) for value in hashes.tolist()]
    assert first_occurrences(hashes).tolist() == expected
