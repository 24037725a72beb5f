"""The function that evaluation measures: from sentences to embeddings, on one device or several."""

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
        """Embeddings [n, hidden] of sentences, including repeated ones. Raises the errors of `remember`."""
        self.remember(sentences)
        assert self._embeddings is not None
        rows: np.ndarray = self._embeddings[[self._row[sentence] for sentence in sentences]]
        return rows

    def remember(self, sentences: list[str]) -> None:
        """Encode the new sentences in one call and cache them.

        Raises:
            ValueError: the encoder did not return one row per sentence.
        """
        new = [sentence for sentence in dict.fromkeys(sentences) if sentence not in self._row]
        if new or self._embeddings is None:
            found = np.asarray(self._encode(new))
            if found.ndim != 2 or len(found) != len(new):
                raise ValueError(f"encode gave an array of shape {found.shape} for {len(new)} sentences")
            self._row.update({sentence: len(self._row) + index for index, sentence in enumerate(new)})
            self._embeddings = found if self._embeddings is None else np.concatenate([self._embeddings, found])


def encode_with(model: SentenceTransformer, **arguments: Any) -> Encode:
    """`model.encode` with these arguments. Texts are first cut to the part that the model reads."""

    def encode(sentences: list[str]) -> np.ndarray:
        found: np.ndarray = model.encode(shortened(model.tokenizer, sentences, model.max_seq_length), **arguments)
        return found

    return encode


def parse_devices(names: str | None) -> list[str]:
    """Parse a list of devices such as `cuda:0,cuda:1` or `cpu,cpu`. None gives an empty list: the model chooses.

    Raises:
        InputError: torch does not know a device, or a GPU does not exist.
    """
    if names is None:
        return []
    import torch

    devices = [name.strip() for name in names.split(",")]
    # only count devices: initializing them would take memory on every device that other processes use
    accelerator = torch.accelerator.current_accelerator()
    there = {"cpu": 1, **({} if accelerator is None else {accelerator.type: torch.accelerator.device_count()})}
    for name in devices:
        kind, _, index = name.partition(":")
        if kind not in there or (index and not (index.isdecimal() and int(index) < there[kind])):
            known = ", ".join(kind if kind == "cpu" else f"{kind}:0 to {count - 1}" for kind, count in there.items())
            raise InputError(f"--devices: {quoted(name)} cannot be used here; there are {known}.")
    return devices


def loading_device(devices: Sequence[str]) -> str | None:
    """Device to load a model on that will compute on `devices`. With several it is the CPU, to load them equally."""
    return "cpu" if len(devices) > 1 else next(iter(devices), None)


@contextmanager
def on_devices(model: SentenceTransformer, devices: Sequence[str], batch_size: int) -> Iterator[dict[str, Any]]:
    """Arguments for `model.encode` to use all `devices`, with a process on each if there are several.

    With several devices the model stays on the CPU, and every process reads it from there.
    """
    if len(devices) < 2:
        yield {"batch_size": batch_size, **({"device": devices[0]} if devices else {})}
        return
    pool = model.start_multi_process_pool(list(devices))
    try:
        yield {"batch_size": batch_size, "pool": pool}
    finally:
        model.stop_multi_process_pool(pool)
