"""The corpus as token ids: made once, kept under a fingerprint, memory-mapped, with fast random access."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from operator import gt
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute
from numpy.lib.format import open_memmap
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from diffcse_scale.foundation.errors import InputError
from diffcse_scale.recipe import DataRecipe
from diffcse_scale.text.cache import cache_folder, fingerprint, locked, num_proc, workers
from diffcse_scale.text.corpus import CorpusReport, corpus_fingerprint, first_rows, read_corpus

log = logging.getLogger(__name__)

# part of every cached name: raise it when the files or the way of tokenizing change
FORMAT = 2


class TokenizedCorpus:
    """Token ids of every sentence, special tokens included, in memory-mapped files that `tokenize` wrote.

    Per column `k` there are `ids_k.npy` (int32, all sentences one after another) and `offsets_k.npy` (int64
    [n + 1], where each begins); the columns of a second tokenizer follow those of the first.

    Attributes:
        fingerprint: changes when the files, the tokenizer, the length or the cleaning do.
        columns: of the corpus; with one, the views of a sentence are the same tokens.
        streams: tokenizers that have read the text: 1, or 2 where discriminator and encoder have one each.
        views: rows of a sentence in a batch: 2 for one column (the same tokens twice) or two, 3 for three.
        report: what cleaning dropped.
        first: rows as `first_rows` shows them; none in what was written before there was such a thing.
        truncated: sentences that were longer than `max_length`, in all columns together.
        without_tokens: rows left out because the tokenizer found nothing in them.
    """

    def __init__(self, folder: Path) -> None:
        facts = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
        self.streams: int = facts["streams"]
        self.columns: int = facts["columns"]
        files = range(self.columns * self.streams)
        self.fingerprint: str = facts["fingerprint"]
        self.max_length: int = facts["max_length"]
        self.truncated: int = facts["truncated"]
        self.without_tokens: int = facts["without_tokens"]
        self.report = CorpusReport(**facts["report"])
        self.first: list[str] = facts.get("first", [])
        self.views = max(2, self.columns)
        self._ids = [_mapped(folder / f"ids_{column}.npy") for column in files]
        self._offsets = [_mapped(folder / f"offsets_{column}.npy") for column in files]

    def __len__(self) -> int:
        return len(self._offsets[0]) - 1

    def lengths(self, view: int = 0, indices: NDArray[np.int64] | None = None, stream: int = 0) -> NDArray[np.int64]:
        """Tokens of each sentence (of those in `indices` if given), special ones included, int64 [n]."""
        offsets = self._offsets[self._column(view, stream)]
        return np.diff(offsets) if indices is None else offsets[indices + 1] - offsets[indices]

    def size(self, view: int = 0, stream: int = 0) -> int:
        """Tokens of all sentences together."""
        return len(self._ids[self._column(view, stream)])

    def place(self, sentence: int, view: int = 0, stream: int = 0) -> slice:
        """Where the ids of a sentence lie in the column's file."""
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

        edited: other ids in the layout of this column's, to take instead.
        """
        column = self._column(view, stream)
        ids, offsets = self._ids[column] if edited is None else edited, self._offsets[column]
        places = offsets[indices][:, None] + np.arange(length)
        real = places < offsets[indices + 1][:, None]
        return np.where(real, ids[np.where(real, places, 0)], padding).astype(np.int64, copy=False)

    def _column(self, view: int, stream: int) -> int:
        return stream * self.columns + (view if self.columns > 1 else 0)

    def __str__(self) -> str:
        """One line: what was dropped, what was truncated."""
        nothing = f"; {self.without_tokens:,} without a token left out" if self.without_tokens else ""
        return f"{self.report}{nothing}; {self.truncated:,} sentences truncated to {self.max_length} tokens"


def tokenize(
    data: DataRecipe, tokenizers: Sequence[PreTrainedTokenizerBase], *, seed: int = 0, main: bool = True
) -> TokenizedCorpus:
    """The corpus that `data` names as tokens, from the cache if it is there and nothing has changed.

    Every rank calls it, and so may unrelated programs at the same time: a file lock lets one of them do the
    work (and show the progress bars), the others wait and read. A half-made cache never has the final name.

    Args:
        tokenizers: each reads all the text (`Tokenizers.streams`); a row in which one finds nothing is left out.
        seed: of the embedded grammar; no other corpus depends on it.
        main: whether this process logs the one line about what was dropped and truncated.

    Raises:
        InputError: as `load_corpus`; a tokenizer whose special tokens alone fill `data.max_length`.
    """
    if any(tokenizer.num_special_tokens_to_add() >= data.max_length for tokenizer in tokenizers):
        raise InputError(f"data.max_length = {data.max_length} has no room beside the special tokens; raise it.")
    name = fingerprint(
        FORMAT,
        corpus_fingerprint(data, seed=seed),
        [data.limit, data.strict, data.max_length],
        *map(_identity, tokenizers),
    )
    folder = cache_folder(data) / f"tokens-{name}"
    with locked(folder):
        if not folder.is_dir():
            _write(folder, name, data, tokenizers, seed)
    tokens = TokenizedCorpus(folder)
    if main:
        log.log(tokens.report.level, "Corpus %s: %s.", ", ".join(data.files), tokens)
    return tokens


def _write(folder: Path, name: str, data: DataRecipe, tokenizers: Sequence[PreTrainedTokenizerBase], seed: int) -> None:
    corpus, report = read_corpus(data, seed=seed)
    unfinished = folder.with_name(folder.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    encoded = corpus.map(
        _encode,
        batched=True,
        fn_kwargs={
            "columns": corpus.column_names,
            "tokenizers": list(tokenizers),
            "max_length": data.max_length,
        },
        remove_columns=corpus.column_names,
        num_proc=num_proc(workers(data), len(corpus)),
        cache_file_name=str(unfinished / "encoded.arrow"),
        new_fingerprint=name,
        desc="tokenizing",
    )
    if not len(encoded):
        raise InputError(f"Corpus {', '.join(data.files)}: the tokenizer finds no token in any sentence.")
    truncated = 0
    for column in range(len(corpus.column_names) * len(tokenizers)):
        _write_column(encoded.data.column(f"ids_{column}").chunks, column, unfinished)
        truncated += pyarrow.compute.sum(encoded.data.column(f"truncated_{column}")).as_py()
    facts = {
        "fingerprint": name,
        "columns": len(corpus.column_names),
        "streams": len(tokenizers),
        "max_length": data.max_length,
        "truncated": truncated,
        "without_tokens": len(corpus) - len(encoded),
        "report": asdict(report),
        "first": first_rows(corpus),
    }
    (unfinished / "facts.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")
    for path in unfinished.glob("encoded*.arrow"):
        path.unlink()
    unfinished.rename(folder)


def _encode(
    batch: dict[str, list[str]],
    columns: Sequence[str],
    tokenizers: Sequence[PreTrainedTokenizerBase],
    max_length: int,
) -> pyarrow.Table:
    """Token ids of a batch, each sentence cut so that the special tokens at its end stay."""
    only_ids = {"return_attention_mask": False, "return_token_type_ids": False, "verbose": False}
    readers = [tokenizer for tokenizer in tokenizers for _ in columns]
    texts = [batch[column] for _ in tokenizers for column in columns]
    encoded = [reader(text, **only_ids)["input_ids"] for reader, text in zip(readers, texts, strict=True)]
    specials = [reader.num_special_tokens_to_add() for reader in readers]
    tails = [_specials_at_the_end(reader) for reader in readers]
    rows = [row for row in zip(*encoded, strict=True) if all(map(gt, map(len, row), specials))]
    table: dict[str, Any] = {}
    for column, sentences in enumerate(zip(*rows, strict=True) if rows else [()] * len(readers)):
        tail = tails[column]
        too_long = [len(ids) > max_length for ids in sentences]
        kept = [
            ids[: max_length - tail] + ids[len(ids) - tail :] if cut else ids
            for ids, cut in zip(sentences, too_long, strict=True)
        ]
        table[f"ids_{column}"] = pyarrow.array(kept, type=pyarrow.list_(pyarrow.int32()))
        table[f"truncated_{column}"] = pyarrow.array(too_long, type=pyarrow.bool_())
    return pyarrow.table(table)


def _write_column(chunks: list[Any], column: int, folder: Path) -> None:
    """Lay the lists of an Arrow column end to end."""
    rows, size = sum(map(len, chunks)), sum(len(chunk.flatten()) for chunk in chunks)
    ids = open_memmap(folder / f"ids_{column}.npy", mode="w+", dtype=np.int32, shape=(size,))
    offsets = open_memmap(folder / f"offsets_{column}.npy", mode="w+", dtype=np.int64, shape=(rows + 1,))
    row = end = 0
    for chunk in chunks:
        values, begins = chunk.flatten().to_numpy(), chunk.offsets.to_numpy()
        ids[end : end + len(values)] = values
        offsets[row : row + len(begins)] = begins - begins[0] + end
        row, end = row + len(chunk), end + len(values)
    ids.flush()
    offsets.flush()


def _mapped(path: Path) -> NDArray[Any]:
    # a plain array on top of the map: indexing a np.memmap costs several times as much
    return np.asarray(np.load(path, mmap_mode="r"))


def _specials_at_the_end(tokenizer: PreTrainedTokenizerBase) -> int:
    mask = tokenizer("a", return_special_tokens_mask=True)["special_tokens_mask"]
    return next((index for index, special in enumerate(reversed(mask)) if not special), 0)


def _identity(tokenizer: PreTrainedTokenizerBase) -> Any:
    """All that tokenization depends on: a fast tokenizer's description without the state of its last call."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return [repr(tokenizer), sorted(tokenizer.get_vocab().items())]
    description = json.loads(backend.to_str())
    return {key: value for key, value in description.items() if key not in ("truncation", "padding")}
