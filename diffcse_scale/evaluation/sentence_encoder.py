"""What is measured: a function from sentences to embeddings, on one device or several."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from diffcse_scale.foundation.errors import InputError, quoted
from diffcse_scale.text.shortening import shortened

if TYPE_CHECKING:  # a training rank need not import it
    from sentence_transformers import SentenceTransformer

Encode = Callable[[list[str]], np.ndarray]
"""Sentences to embeddings [n, hidden], floating point, in the order given."""


class Once:
    """An `Encode` with a cache: each distinct sentence is encoded only once."""

    def __init__(self, encode: Encode) -> None:
        self._encode = encode
        self._row: dict[str, int] = {}
        self._embeddings: np.ndarray | None = None

    @property
    def sentences(self) -> list[str]:
        """The distinct sentences that were encoded."""
        return list(self._row)

    def __call__(self, sentences: list[str]) -> np.ndarray:
        """Embeddings [n, hidden] of sentences, repeated ones included; raises as `remember` does."""
        self.remember(sentences)
        assert self._embeddings is not None
        rows: np.ndarray = self._embeddings[[self._row[sentence] for sentence in sentences]]
        return rows

    def remember(self, sentences: list[str]) -> None:
        """Encode those that are new, all at a time, so that the next calls find them.

        Raises:
            ValueError: the encoder gave another number of rows than it was given sentences.
        """
        new = [sentence for sentence in dict.fromkeys(sentences) if sentence not in self._row]
        if new or self._embeddings is None:
            found = np.asarray(self._encode(new))
            if found.ndim != 2 or len(found) != len(new):
                raise ValueError(f"encode gave an array of shape {found.shape} for {len(new)} sentences")
            self._row.update({sentence: len(self._row) + index for index, sentence in enumerate(new)})
            self._embeddings = found if self._embeddings is None else np.concatenate([self._embeddings, found])


def encode_with(model: SentenceTransformer, **arguments: Any) -> Encode:
    """`model.encode` with these arguments, of texts that are cut first to what the model reads of them."""

    def encode(sentences: list[str]) -> np.ndarray:
        found: np.ndarray = model.encode(shortened(model.tokenizer, sentences, model.max_seq_length), **arguments)
        return found

    return encode


def parse_devices(names: str | None) -> list[str]:
    """The devices that `cuda:0,cuda:1` or `cpu,cpu` names; none for None, which means the model's own.

    Raises:
        InputError: a name that torch does not know, or a GPU that is not there.
    """
    if names is None:
        return []
    import torch

    devices = [name.strip() for name in names.split(",")]
    # counted and not touched: this process would hold a part of every device that others compute on
    accelerator = torch.accelerator.current_accelerator()
    there = {"cpu": 1, **({} if accelerator is None else {accelerator.type: torch.accelerator.device_count()})}
    for name in devices:
        kind, _, index = name.partition(":")
        if kind not in there or (index and not (index.isdecimal() and int(index) < there[kind])):
            known = ", ".join(kind if kind == "cpu" else f"{kind}:0 to {count - 1}" for kind, count in there.items())
            raise InputError(f"--devices: {quoted(name)} cannot be used here; there are {known}.")
    return devices


def loading_device(devices: Sequence[str]) -> str | None:
    """Where a model is loaded that is to compute on `devices`: of several, none is to hold more than the others."""
    return "cpu" if len(devices) > 1 else next(iter(devices), None)


@contextmanager
def on_devices(model: SentenceTransformer, devices: Sequence[str], batch_size: int) -> Iterator[dict[str, Any]]:
    """The arguments with which `model.encode` uses all `devices`, a process each; one or none needs no process.

    With several devices the model is left on the CPU, from where every process reads it.
    """
    if len(devices) < 2:
        yield {"batch_size": batch_size, **({"device": devices[0]} if devices else {})}
        return
    pool = model.start_multi_process_pool(list(devices))
    try:
        yield {"batch_size": batch_size, "pool": pool}
    finally:
        model.stop_multi_process_pool(pool)
