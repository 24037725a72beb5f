"""The corpus as token ids: made once, cached under a fingerprint, memory-mapped, with fast random access."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow
from numpy.lib.format import open_memmap
from numpy.typing import DTypeLike, NDArray
from transformers import PreTrainedTokenizerBase

from diffcse_scale.foundation.errors import InputError
from diffcse_scale.foundation.file_digest import sha256_of
from diffcse_scale.foundation.strict_json import to_json
from diffcse_scale.recipe import DataRecipe
from diffcse_scale.text.bars import at_work
from diffcse_scale.text.cache import cache_folder, fingerprint, num_proc, workers
from diffcse_scale.text.corpus import CorpusReport, corpus_fingerprint, first_rows, read_corpus
from diffcse_scale.text.digests import digest
from diffcse_scale.text.duplicates import first_occurrences
from diffcse_scale.text.prepared import CONTENTS, prepared
from diffcse_scale.text.tokenizers import truncates_left
from diffcse_scale.text.tokenizing import encode_rows
from diffcse_scale.text.unknown import leaves_out, left_out, percent, unknown_id

log = logging.getLogger(__name__)

# part of every cached name; increase it when the files or the tokenization change
FORMAT = 3

# A corpus with a larger share of unknown tokens is refused: the networks would mostly see one and the same token.
MOST_UNKNOWN = 0.5
ROWS_AT_ONCE = 2**20  # block size when something is computed for all rows
# a share of unknown tokens that is worth a warning
DOUBTFUL = 0.01
LOADED_HOW = {"is_local", "local_files_only"}  # a tokenizer remembers these; they depend on whether the Hub was offline


class TokenizedCorpus:
    """Token ids of every sentence, special tokens included, in memory-mapped files that `tokenize` wrote.

    Each column `k` has `ids_k.npy` (int32, all sentences one after another) and `offsets_k.npy` (int64 [n + 1], where
    each sentence begins). The columns of a second tokenizer follow those of the first. Each tokenizer `s` has
    `longest_s.npy`, by which every batch is sorted. All processes of a machine map the same memory.

    Attributes:
        fingerprint: of the token ids; independent of the files they come from.
        columns: number of columns of the corpus; with one, the views of a sentence have the same tokens.
        streams: number of tokenizers that read the text: 1, or 2 if discriminator and encoder have one each.
        views: rows of a sentence in a batch: 2 for one column (the same tokens twice) or two columns, 3 for three.
        report: what cleaning dropped.
        first: rows as `first_rows` shows them; empty in files of earlier versions.
        truncated: sentences longer than `max_length`, in all columns together.
        without_tokens: rows left out because the tokenizer found no token in them.
        equal: rows left out because an earlier one has the same tokens: each would be the other's negative.
        unknown: for each tokenizer, the share of its tokens in all rows that are not in the vocabulary; special tokens
            do not count.
    """

    def __init__(self, folder: Path) -> None:
        """Open the files. A damaged one raises a built-in exception (ValueError, KeyError and others)."""
        facts = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
        self._folder = folder
        self.streams: int = facts["streams"]
        self.columns: int = facts["columns"]
        files = range(self.columns * self.streams)
        self.fingerprint: str = facts["fingerprint"]
        self.max_length: int = facts["max_length"]
        self.truncated: int = facts["truncated"]
        self.without_tokens: int = facts["without_tokens"]
        self.equal: int = facts["equal"]
        self.unknown: list[float] = facts["unknown"]
        self.report = CorpusReport(**facts["report"])
        self.first: list[str] = facts.get("first", [])
        self.views = max(2, self.columns)
        self._ids, self._offsets = ([_mapped(folder / files_of(column)[kind]) for column in files] for kind in range(2))
        if any(offsets[-1] != len(ids) for ids, offsets in zip(self._ids, self._offsets, strict=True)):
            raise ValueError("the number of ids in a column does not match its offsets")

    def __len__(self) -> int:
        return len(self._offsets[0]) - 1

    def lengths(self, view: int = 0, indices: NDArray[np.int64] | None = None, stream: int = 0) -> NDArray[np.int64]:
        """Tokens of each sentence (of those in `indices` if given), special ones included, int64 [n]."""
        offsets = self._offsets[self._column(view, stream)]
        return np.diff(offsets) if indices is None else offsets[indices + 1] - offsets[indices]

    def longest(self, stream: int = 0) -> NDArray[np.unsignedinteger]:
        """Tokens of each sentence's longest view, [n], in the smallest dtype for `max_length`; the caller keeps it."""
        file = self._folder / longest_file(stream)
        if file.exists():
            return _mapped(file)
        found = np.empty(len(self), np.min_scalar_type(self.max_length))  # earlier versions wrote no such file
        _fill_longest(found, [self._offsets[self._column(view, stream)] for view in range(self.columns)])
        return found

    def size(self, view: int = 0, stream: int = 0) -> int:
        """Tokens of all sentences together."""
        return len(self._ids[self._column(view, stream)])

    def place(self, sentence: int, view: int = 0, stream: int = 0) -> slice:
        """The position of a sentence's ids in the column's file."""
        start, end = self._offsets[self._column(view, stream)][sentence : sentence + 2].tolist()
        return slice(start, end)

    def rows(self, indices: NDArray[np.int64], view: int = 0, stream: int = 0) -> list[NDArray[np.int32]]:
        """Token ids of some sentences: one int32 array each, a view of the file."""
        column = self._column(view, stream)
        ids, offsets = self._ids[column], self._offsets[column]
        starts, ends = offsets[indices].tolist(), offsets[indices + 1].tolist()
        return [ids[start:end] for start, end in zip(starts, ends, strict=True)]

    def padded(
        self,
        indices: NDArray[np.int64],
        view: int,
        length: int,
        padding: int,
        stream: int = 0,
        edited: NDArray[np.int32] | None = None,
    ) -> NDArray[np.int64]:
        """Token ids of some sentences, int64 [len(indices), length], with `padding` on the right.

        edited: ids to use instead, in the layout of this column's ids.
        """
        column = self._column(view, stream)
        ids, offsets = self._ids[column] if edited is None else edited, self._offsets[column]
        places = offsets[indices][:, None] + np.arange(length)
        real = places < offsets[indices + 1][:, None]
        return np.where(real, ids[np.where(real, places, 0)], padding).astype(np.int64, copy=False)

    def _column(self, view: int, stream: int) -> int:
        return stream * self.columns + (view if self.columns > 1 else 0)

    def facts(self) -> dict[str, Any]:
        """What happened to the text, for the record of a run."""
        lost = {"equal": self.equal, "without_tokens": self.without_tokens, "truncated": self.truncated}
        return {"sentences": len(self), **lost, "unknown": self.unknown, "cleaning": asdict(self.report)}

    @property
    def level(self) -> int:
        """The log level: a warning if anything was dropped or much is unknown; else the start table is enough."""
        lost = self.equal or self.without_tokens or max(self.unknown) > DOUBTFUL
        return logging.WARNING if lost else self.report.level

    @property
    def losses(self) -> str:
        """What was truncated, and the share of tokens that are not in the vocabulary."""
        share = f" ({percent(self.truncated / (len(self) * self.columns * self.streams))})" if self.truncated else ""
        truncated = f"{self.truncated:,} sentences{share} truncated to {self.max_length} tokens"
        return f"{truncated}; {' and '.join(map(percent, self.unknown))} of the tokens unknown"

    def __str__(self) -> str:
        """One line: what was dropped and what was lost."""
        nothing = f"; {self.without_tokens:,} left out because no token remained" if self.without_tokens else ""
        equal = f"; {self.equal:,} left out because an earlier one has the same tokens" if self.equal else ""
        return f"{self.report}{nothing}{equal}; {self.losses}"


def tokenize(
    data: DataRecipe, tokenizers: Sequence[PreTrainedTokenizerBase], *, seed: int = 0, main: bool = True
) -> TokenizedCorpus:
    """The tokens of the corpus that `data` names, from the cache if it has them and nothing has changed.

    Every rank calls this, and unrelated programs may call it at the same time. One of them does the work and shows the
    progress bars; the others wait and read (`prepared`).

    Args:
        tokenizers: each reads all the text (`Tokenizers.streams`); a row in which one finds no token is left out.
        seed: the seed of the embedded grammar; no other corpus depends on it.
        main: whether this process logs the line about what was dropped and truncated.

    Raises:
        InputError: as `load_corpus`; the special tokens of a tokenizer alone fill `data.max_length`; or more than
            MOST_UNKNOWN of its tokens are unknown.
    """
    if any(tokenizer.num_special_tokens_to_add() >= data.max_length for tokenizer in tokenizers):
        raise InputError(f"data.max_length = {data.max_length} leaves no room besides the special tokens; raise it.")
    name = fingerprint(
        FORMAT,
        corpus_fingerprint(data, seed=seed),
        [data.limit, data.strict, data.max_length],
        *map(_identity, tokenizers),
    )
    cache = cache_folder(data)
    tokens = prepared(
        cache / f"tokens-{name}",
        cache,
        read=lambda folder: _read(folder, cache),
        make=lambda fresh: _write(fresh, name, data, tokenizers, seed),
    )
    if main:
        log.log(tokens.level, "Corpus %s: %s.", ", ".join(data.files), tokens)
    return tokens


def _read(folder: Path, cache: Path) -> TokenizedCorpus:
    """The tokens in a folder. Folders of earlier versions have no list of contents; their fingerprint is checked.

    Raises:
        ValueError: the bytes are not those that were written.
    """
    tokens = TokenizedCorpus(folder)
    if not (folder / CONTENTS).is_file():
        columns = range(tokens.columns * tokens.streams)
        digests = [digest(folder / file, cache) for column in columns for file in files_of(column)]
        if tokens.fingerprint != _fingerprint(tokens.streams, digests):
            raise ValueError("its bytes are not those that were written")
    return tokens


def _fingerprint(streams: int, digests: Sequence[str]) -> str:
    """The fingerprint of token ids, from the SHA-256 of their files."""
    return fingerprint(streams, hashlib.sha256(bytes.fromhex("".join(digests))).hexdigest())


def _write(folder: Path, name: str, data: DataRecipe, tokenizers: Sequence[PreTrainedTokenizerBase], seed: int) -> None:
    with at_work("reading and tokenizing the corpus"):
        corpus, report = read_corpus(data, seed=seed)
        folder.mkdir()
        encoded = corpus.map(
            encode_rows,
            batched=True,
            fn_kwargs={
                "columns": corpus.column_names,
                "tokenizers": list(tokenizers),
                "max_length": data.max_length,
            },
            remove_columns=corpus.column_names,
            num_proc=num_proc(workers(data), len(corpus)),
            cache_file_name=str(folder / "encoded.arrow"),
            new_fingerprint=name,
            desc="tokenizing",
        )
    if not len(encoded):
        raise InputError(f"Corpus {', '.join(data.files)}: the tokenizer finds no token in any sentence.")
    columns = range(len(corpus.column_names) * len(tokenizers))
    unknown = _unknown(encoded, corpus, data, tokenizers)
    distinct = first_occurrences(encoded.data.column("hash").to_numpy())
    truncated = 0
    for column in columns:
        _write_column(encoded.data.column(f"ids_{column}").chunks, distinct, column, folder)
        truncated += int(encoded.data.column(f"truncated_{column}").to_numpy()[distinct].sum())
    _write_longest(folder, data.max_length, len(corpus.column_names), len(tokenizers))
    digests = [sha256_of(folder / file) for column in columns for file in files_of(column)]
    facts = {
        "fingerprint": _fingerprint(len(tokenizers), digests),
        "columns": len(corpus.column_names),
        "streams": len(tokenizers),
        "max_length": data.max_length,
        "truncated": truncated,
        "without_tokens": len(corpus) - len(encoded),
        "equal": len(encoded) - int(distinct.sum()),
        "unknown": unknown,
        "report": asdict(report),
        "first": first_rows(corpus),
    }
    (folder / "facts.json").write_text(to_json(facts, indent=1), encoding="utf-8")
    for path in folder.glob("encoded*.arrow"):
        path.unlink()


def _unknown(
    encoded: datasets.Dataset,
    corpus: datasets.Dataset,
    data: DataRecipe,
    tokenizers: Sequence[PreTrainedTokenizerBase],
) -> list[float]:
    """The share of unknown tokens for each tokenizer; of one that leaves out characters, their share in a sample.

    Raises:
        InputError: a share is too large.
    """
    shares = []
    names = corpus.column_names
    for stream, tokenizer in enumerate(tokenizers):
        if leaves_out(tokenizer):
            what, token = "characters", ", which leaves them out"
            counts = [left_out(tokenizer, corpus[name]) for name in names]
        else:
            what, token = "tokens", f" ({tokenizer.unk_token})"
            ids = [encoded.data.column(f"ids_{stream * len(names) + column}") for column in range(len(names))]
            counts = [_unknown_in(rows, tokenizer) for rows in ids]
        for column, (found, of_all) in enumerate(counts):
            if found > MOST_UNKNOWN * of_all:
                where = f" in {data.columns[column]}" if data.columns is not None and len(names) > 1 else ""
                raise InputError(
                    f"Corpus {', '.join(data.files)}: {percent(found / of_all)} of its {what}{where} are unknown to "
                    f"the tokenizer of {tokenizer.name_or_path}{token}; choose a model whose vocabulary fits this text."
                )
        found, of_all = map(sum, zip(*counts, strict=True))
        shares.append(found / of_all)
    return shares


def _unknown_in(rows: Any, tokenizer: PreTrainedTokenizerBase) -> tuple[int, int]:
    """In a column of token ids, the number of unknown tokens, and of all tokens without the special ones."""
    found = tokens = 0
    for chunk in rows.chunks:
        ids = chunk.flatten().to_numpy()
        found += int((ids == unknown_id(tokenizer)).sum())
        tokens += len(ids) - len(chunk) * tokenizer.num_special_tokens_to_add()
    return found, tokens


def files_of(column: int) -> tuple[str, str]:
    """The file names of a column: its ids, and where each sentence begins."""
    return f"ids_{column}.npy", f"offsets_{column}.npy"


def _write_column(chunks: list[Any], kept: NDArray[np.bool_], column: int, folder: Path) -> None:
    """Write the lists of an Arrow column end to end, for the rows that are kept."""
    parts = np.split(kept, np.cumsum([len(chunk) for chunk in chunks])[:-1])
    size = sum(int(np.diff(chunk.offsets.to_numpy())[part].sum()) for chunk, part in zip(chunks, parts, strict=True))
    ids_file, offsets_file = files_of(column)
    ids = new_array(folder / ids_file, np.int32, size)
    offsets = new_array(folder / offsets_file, np.int64, int(kept.sum()) + 1)
    row = end = 0
    for chunk, part in zip(chunks, parts, strict=True):
        chosen = chunk if part.all() else chunk.filter(pyarrow.array(part))
        values, begins = chosen.flatten().to_numpy(), chosen.offsets.to_numpy()
        ids[end : end + len(values)] = values
        offsets[row : row + len(begins)] = begins - begins[0] + end
        row, end = row + len(chosen), end + len(values)
    ids.flush()
    offsets.flush()


def longest_file(stream: int) -> str:
    """The file name for the lengths of each sentence's longest view, for one tokenizer."""
    return f"longest_{stream}.npy"


def _write_longest(folder: Path, max_length: int, columns: int, streams: int) -> None:
    for stream in range(streams):
        offsets = [_mapped(folder / files_of(stream * columns + column)[1]) for column in range(columns)]
        found = new_array(folder / longest_file(stream), np.min_scalar_type(max_length), len(offsets[0]) - 1)
        _fill_longest(found, offsets)
        found.flush()


def _fill_longest(found: NDArray[np.unsignedinteger], offsets: Sequence[NDArray[np.int64]]) -> None:
    """Fill `found` with the length of each row's longest column; `offsets` [n + 1] of a column say where rows begin."""
    for start in range(0, len(found), ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE + 1)
        found[start : start + ROWS_AT_ONCE] = np.max([np.diff(begins[rows]) for begins in offsets], axis=0)


def new_array(file: Path, dtype: DTypeLike, size: int) -> Any:
    """An array of zeros in a file, mapped for writing. Its disk space is reserved first.

    Raises:
        OSError: the disk is full. Without this check, writing to the map would kill the process without a message.
    """
    array = open_memmap(file, mode="w+", dtype=dtype, shape=(size,))
    with file.open("r+b") as opened:
        os.posix_fallocate(opened.fileno(), 0, max(1, file.stat().st_size))
    return array


def _mapped(path: Path) -> NDArray[Any]:
    # a plain array on top of the map, because indexing a np.memmap costs several times as much
    return np.asarray(np.load(path, mmap_mode="r"))


def _identity(tokenizer: PreTrainedTokenizerBase) -> Any:
    """Everything that tokenization depends on: a fast tokenizer's description without the state of its last call.

    A tokenizer in Python has settings that its representation does not show, such as `do_lower_case`, and may read
    files besides its vocabulary.

    The usual side of truncation is not in it, as in earlier versions, which knew no other.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        settings = sorted((key, repr(tokenizer.init_kwargs[key])) for key in tokenizer.init_kwargs.keys() - LOADED_HOW)
        named = (getattr(tokenizer, name, None) for name in tokenizer.vocab_files_names)
        digests = [sha256_of(Path(file)) for file in named if file and Path(file).is_file()]
        return [repr(tokenizer), sorted(tokenizer.get_vocab().items()), settings, digests]
    description = json.loads(backend.to_str())
    rest = {key: value for key, value in description.items() if key not in ("truncation", "padding")}
    return rest | ({"truncation_side": "left"} if truncates_left(tokenizer) else {})
