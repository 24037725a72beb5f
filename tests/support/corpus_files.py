"""The same sentences in every form of file that a corpus may have."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from collections.abc import Callable

import pyarrow
import pyarrow.parquet
import zstandard

from diffcse_scale.recipe import DataRecipe
from diffcse_scale.text.corpus import load_corpus

MakeRecipe = Callable[..., DataRecipe]


SENTENCES = [
    "A first one.",
    "Zweiter Satz: größer, schöner.",
    'He said "no", then left.',
    "第四句",
    "NA",
    '"Unclosed" and no more',
]


def text(sentences: list[str]) -> bytes:
    return "".join(line + "\n" for line in sentences).encode()


def json_lines(sentences: list[str]) -> bytes:
    return "".join(json.dumps({"id": i, "text": line}) + "\n" for i, line in enumerate(sentences)).encode()


def comma_separated(sentences: list[str]) -> bytes:
    quoted = ['"' + line.replace('"', '""') + '"' for line in sentences]
    return ("id,text\n" + "".join(f"{i},{line}\n" for i, line in enumerate(quoted))).encode()


def tab_separated(sentences: list[str]) -> bytes:
    return ("text\tid\n" + "".join(f"{line}\t{i}\n" for i, line in enumerate(sentences))).encode()


def parquet(sentences: list[str], categories: bool = False) -> bytes:
    sink = pyarrow.BufferOutputStream()
    column = pyarrow.array(sentences, pyarrow.string())
    column = column.dictionary_encode() if categories else column
    pyarrow.parquet.write_table(pyarrow.table({"id": range(len(sentences)), "text": column}), sink)
    return sink.getvalue().to_pybytes()


COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.compress,
}

FORMS: dict[str, Callable[[list[str]], bytes]] = {
    "a.txt": text,
    "no_ending": text,
    "a.txt.gz": lambda s: gzip.compress(text(s)),
    "a.gz": lambda s: gzip.compress(text(s)),
    "a.txt.xz": lambda s: lzma.compress(text(s)),
    "a.txt.zst": lambda s: zstandard.compress(text(s)),
    "a.txt.bz2": lambda s: bz2.compress(text(s)),
    "a.jsonl": json_lines,
    "a.jsonl.zst": lambda s: zstandard.compress(json_lines(s)),
    "a.csv": comma_separated,
    "a.csv.gz": lambda s: gzip.compress(comma_separated(s)),
    "a.tsv": tab_separated,
    "a.parquet": parquet,
    "brackets[1].txt": text,
    "windows.txt": lambda s: b"\xef\xbb\xbf" + text(s).replace(b"\n", b"\r\n"),
    "no_last_line_end.txt": lambda s: text(s)[:-1],
}


def sentences_of(data: DataRecipe) -> list[str]:
    return load_corpus(data)["text_0"][:]
