"""The name says the format of a file, its first bytes must agree, and every format is read alike, compressed or not."""

from __future__ import annotations

import bz2
import gzip
import lzma
import re
from pathlib import Path

import pytest
import zstandard

from diffcse_scale.foundation.errors import InputError
from diffcse_scale.recipe import FILE_FORMATS
from diffcse_scale.text.contents import check_content, seems_to_be
from diffcse_scale.text.corpus import CorpusReport, load_corpus, read_corpus
from diffcse_scale.text.formats import COMPRESSIONS, ENDINGS, FORMATS, format_of
from tests.support.corpus_files import FORMS, SENTENCES, MakeRecipe, parquet, sentences_of
from tests.support.launch import ROOT

CONTENTS = {
    "Parquet": parquet(["one"]),
    "gzip": gzip.compress(b"one\n", mtime=0),
    "xz": lzma.compress(b"one\n"),
    "zstd": zstandard.compress(b"one\n"),
    "bzip2": bz2.compress(b"one\n"),
    "zip": b"PK\x03\x04\x14\x00",
    "lz4": b"\x04\x22\x4d\x18 and text",
    "7z": b"7z\xbc\xaf\x27\x1c and text",
    "rar": b"Rar!\x1a\x07\x01\x00",
    "NumPy": b"\x93NUMPY\x01\x00v\x00",
    "SQLite": b"SQLite format 3\x00\x10",
    "UTF-16": "one\n".encode("utf-16"),
    "UTF-32": "one\n".encode("utf-32"),
    "an HTML page": b"\n<!DOCTYPE html>\n<html><head><title>corpus.txt</title>\n",
    "a Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
    "binary data": b"\x01\x00\x02\x00" * 9,
}
COMPRESSED = {"a.gz": "gzip", "a.txt.xz": "xz", "a.jsonl.zst": "zstd", "a.csv.bz2": "bzip2"}
MISNAMED = [
    *((name, seems) for seems in CONTENTS for name in ("a.txt", "a.jsonl", "a.csv", "a.tsv", "no_ending")),
    *((name, seems) for seems in CONTENTS for name in COMPRESSED if COMPRESSED[name] != seems),
    *(("a.parquet", seems) for seems in CONTENTS if seems != "Parquet"),
]


@pytest.mark.parametrize(("name", "seems"), MISNAMED)
def test_a_file_that_holds_something_else_than_its_name_says_is_refused(tmp_path: Path, name: str, seems: str) -> None:
    path = tmp_path / name
    path.write_bytes(CONTENTS[seems])
    with pytest.raises(InputError, match=rf"{name} is named like .* and seems to be {seems};"):
        check_content(str(path), format_of(name))


@pytest.mark.parametrize("name", [*COMPRESSED, "a.parquet"])
@pytest.mark.parametrize(("content", "seems"), [(b"one\n", "text or damaged"), (b"", "empty")])
def test_a_file_without_the_beginning_of_its_format_is_refused(
    tmp_path: Path, recipe: MakeRecipe, name: str, content: bytes, seems: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=rf"{name} is named like .* and seems to be {seems};"):
        load_corpus(recipe(tmp_path / name))


def test_what_is_compressed_is_looked_at_too(tmp_path: Path, recipe: MakeRecipe) -> None:
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress(parquet(["one"])))
    with pytest.raises(InputError, match=r"a\.txt\.gz is named like compressed text and seems to hold Parquet"):
        load_corpus(recipe(path))


ADVICE = {
    "an HTML page": "of the text itself",
    "a Git LFS pointer": "`git lfs pull`",
    "UTF-16": "iconv -f UTF-16",
    "UTF-32": "iconv -f UTF-32",
    "zip": "the ending that fits",
}


@pytest.mark.parametrize("seems", ADVICE)
def test_what_stands_in_the_place_of_a_file_is_not_trained_on(tmp_path: Path, recipe: MakeRecipe, seems: str) -> None:
    (tmp_path / "a.txt").write_text("one\n")
    (tmp_path / "b.txt").write_bytes(CONTENTS[seems])
    with pytest.raises(InputError, match=rf"b\.txt .* seems to be {seems}; .*{ADVICE[seems]}"):
        load_corpus(recipe(tmp_path / "*.txt"))


def test_lines_of_json_are_no_sentences(tmp_path: Path, recipe: MakeRecipe) -> None:
    objects = b'\n{"text": "a dog"}\n{"text": "a cat"}\n'
    for name, content in (
        ("a.txt", b"\xef\xbb\xbf" + objects.lstrip()),
        ("a", objects),
        ("a.txt.gz", gzip.compress(objects)),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=rf"{name} is named like .*text and seems to (be|hold) lines of JSON"):
            load_corpus(recipe(tmp_path / name))
    sentences = ['{"a": 1} is JSON.', '{"a": 1}', "{}", "[1, 2]"]
    (tmp_path / "b.txt").write_text("\n".join(sentences) + "\n")
    assert sentences_of(recipe(tmp_path / "b.txt")) == sentences


@pytest.mark.parametrize(
    "text", ["PAR1 is a receptor.", "BZh9 is a beginning.", "PK and 7z", "<htmlx> is no tag.", "version https://x"]
)
def test_a_sentence_may_begin_like_a_format(text: str) -> None:
    assert seems_to_be(text.encode()) is None


@pytest.mark.parametrize("name", FORMS)
def test_the_name_of_a_link_says_the_format(tmp_path: Path, recipe: MakeRecipe, name: str) -> None:
    """The Hub's cache: `snapshots/x/train.jsonl -> ../../blobs/3f9ab1`."""
    blob, link = tmp_path / "blobs" / "3f9ab1", tmp_path / "snapshots" / "x" / name
    blob.parent.mkdir()
    link.parent.mkdir(parents=True)
    blob.write_bytes(FORMS[name](SENTENCES))
    link.symlink_to(Path("../../blobs/3f9ab1"))
    assert sentences_of(recipe(link)) == SENTENCES
    pattern = link.parent / f"{name[0]}*{link.suffix}"
    assert sentences_of(recipe(pattern)) == SENTENCES


def test_a_link_to_something_else_than_its_name_says_is_refused(tmp_path: Path, recipe: MakeRecipe) -> None:
    (tmp_path / "3f9ab1").write_bytes(parquet(["one"]))
    (tmp_path / "train.jsonl").symlink_to("3f9ab1")
    with pytest.raises(InputError, match=r"train\.jsonl is named like text and seems to be Parquet"):
        load_corpus(recipe(tmp_path / "train.jsonl"))


@pytest.mark.parametrize("ending", ["", ".gz", ".xz", ".zst", ".bz2"])
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", b"one\ntw\xffo\nthree\n"),
        ("a.jsonl", b'{"text": "one"}\n{"text": "tw\xffo"}\n{"text": "three"}\n'),
        ("a.csv", b"text,id\none,1\ntw\xffo,2\nthree,3\n"),
        ("a.tsv", b"text\tid\none\t1\ntw\xffo\t2\nthree\t3\n"),
    ],
)
def test_a_byte_order_mark_goes_and_an_undecodable_row_is_counted_compressed_or_not(
    tmp_path: Path, recipe: MakeRecipe, name: str, content: bytes, ending: str
) -> None:
    compress = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress, ".zst": zstandard.compress, ".bz2": bz2.compress}
    path = tmp_path / (name + ending)
    path.write_bytes(compress[ending](b"\xef\xbb\xbf" + content))
    corpus, report = read_corpus(recipe(path))
    assert corpus["text_0"][:] == ["one", "three"]
    assert report == CorpusReport(read=3, empty=0, undecodable=1, duplicate=0, unused=0, kept=2)


@pytest.mark.parametrize(
    "contents",
    [
        [b'{"id": "a1"}\n{"id": "a2", "text": "one"}\n'],
        [b'{"id": "a1"}\n', b'{"id": "a2", "text": "one"}\n'],
        [b'{"id": 1, "review": null}\n', b'{"id": 2, "review": "one"}\n'],
    ],
)
def test_the_column_is_chosen_from_many_rows_of_all_files_and_rows_without_it_are_counted(
    tmp_path: Path, recipe: MakeRecipe, contents: list[bytes]
) -> None:
    for index, content in enumerate(contents):
        (tmp_path / f"{index}.jsonl").write_bytes(content)
    corpus, report = read_corpus(recipe(tmp_path / "*.jsonl"))
    assert corpus["text_0"][:] == ["one"]
    assert (report.read, report.empty, report.kept) == (2, 1, 1)


def test_tables_of_several_files_are_joined_by_the_names_of_their_columns(tmp_path: Path, recipe: MakeRecipe) -> None:
    (tmp_path / "a.csv").write_text("id,text\n1,one\n")
    (tmp_path / "b.csv").write_text('text,date,id\n"two, three",1 May,2\n')
    assert sentences_of(recipe(tmp_path / "*.csv", columns=["text"])) == ["one", "two, three"]


def test_of_tables_with_other_columns_the_one_without_the_wanted_column_is_named(
    tmp_path: Path, recipe: MakeRecipe
) -> None:
    (tmp_path / "a.csv").write_text("text\none\n")
    (tmp_path / "b.csv").write_text("title\ntwo\n")
    with pytest.raises(InputError, match=r"b\.csv has no column 'text', only title"):
        load_corpus(recipe(tmp_path / "*.csv", columns=["text"]))


def test_every_row_of_the_tables_is_tried_here_and_stands_in_help_and_docs() -> None:
    tried = {suffix for name in FORMS for suffix in Path(name).suffixes}
    help_text, docs = (
        FILE_FORMATS.replace("text,", ".txt,"),
        (ROOT / "docs" / "corpus.md").read_text(encoding="utf-8"),
    )
    for ending in (*(one.endings[0] for one in FORMATS.values()), *COMPRESSIONS):
        assert ending in tried and f"{ending}`" in docs
    assert set(re.findall(r"\.\w+", help_text)) <= ENDINGS.keys() | COMPRESSIONS.keys()
    assert all(one.endings[0] in help_text for one in FORMATS.values())
