"""Embeddings of a window of sentences on one device: sorted by length, in batches with similar numbers of tokens.

`SentenceTransformer.encode` sorts by characters and pads to the longest of 32 sentences. On Wikipedia sentences this
adds a third more tokens. Here sentences are tokenized first and sorted by tokens, which leaves less than 1% padding.
Everything after that is done by the model's own modules.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Transformer
from torch import Tensor

from diffcse_scale.encoding.shard_files import Floats
from diffcse_scale.foundation.environment import native_bfloat16
from diffcse_scale.foundation.errors import InputError, quoted
from diffcse_scale.model.weights import cast_parameters
from diffcse_scale.model_folder.load import truncate_at
from diffcse_scale.text.shortening import shortened
from diffcse_scale.text.unknown import leaves_out, left_out, unknown_id

UNPADDED = {"text": {"padding": False}, "common": {"return_tensors": None}}
BATCH_TOKENS = {"cpu": 1024}  # a batch whose activations stay in the caches
BATCH_TOKENS_ELSEWHERE = 32_768


@dataclass(frozen=True)
class Batch:
    """Sentences of about the same length.

    Attributes:
        places: int64 [n], indices of these sentences among the window's distinct sentences.
        features: input of the model's first module, padded to the longest sentence.
        rows: number of rows in the window that have one of these sentences.
        tokens: number of tokens without padding.
    """

    places: Tensor
    features: dict[str, Any]
    rows: int
    tokens: int


COUNTS = ("tokens", "unknown", "characters", "left_out")


@dataclass(frozen=True)
class Window:
    """Tokenized sentences.

    Attributes:
        distinct: number of distinct sentences; each is encoded once.
        places: int64 [rows], index of each row's sentence among the distinct ones.
        batches: longest sentences first; a sentence without tokens is in no batch.
        tokens: number of tokens in all rows, including special tokens.
        unknown: number of unknown tokens among them.
        characters: number of characters in all rows, or in a sample; 0 for a tokenizer that leaves out none.
        left_out: number of characters among them that are in no token.
    """

    distinct: int
    places: NDArray[np.int64]
    batches: list[Batch]
    tokens: int
    unknown: int
    characters: int
    left_out: int

    def counts(self) -> dict[str, int]:
        """What is known of the text, for the record of a shard."""
        return {name: getattr(self, name) for name in COUNTS}


def choose_precision(wanted: str, device: torch.device) -> str:
    """`wanted`, or the meaning of "auto": bfloat16 on accelerators with native bfloat16, else float32."""
    if wanted != "auto":
        return wanted
    return "bfloat16" if native_bfloat16(device) else "float32"


def choose_batch_tokens(wanted: int | None, device: torch.device) -> int:
    """`wanted`, or the default for a device."""
    return wanted or BATCH_TOKENS.get(device.type, BATCH_TOKENS_ELSEWHERE)


def check_prompt(model: SentenceTransformer, name: str | None) -> None:
    """Raise InputError unless the model has a prompt with this name, or `name` is None."""
    if name is not None and name not in model.prompts:
        known = ", ".join(model.prompts) or "none"
        raise InputError(f"The model has no prompt {quoted(name)}; its prompts: {known}.")


class WindowEncoder:
    """A model on a device.

    On one kind of device and with one number of threads, `encode(prepare(sentences))` depends only on the sentences,
    because nothing else determines the batches.

    Args:
        precision: float32, bfloat16 or float16.
        batch_tokens: tokens per batch, including padding; a longer sentence is its own batch.
        max_length: tokens per sentence; None uses the model's own limit.
        prompt_name: one of the model's prompts; None uses its default prompt, if any.

    Raises:
        InputError: the prompt does not exist, or the model does not begin with a transformer that reads text or
            cannot read `max_length` tokens.
    """

    def __init__(
        self,
        model: SentenceTransformer,
        device: torch.device,
        precision: str = "float32",
        batch_tokens: int = 1024,
        max_length: int | None = None,
        prompt_name: str | None = None,
    ) -> None:
        self._transformer = model[0]
        if not isinstance(self._transformer, Transformer) or model.tokenizer is None:
            raise InputError("The model does not begin with a transformer that reads text; encode cannot use it.")
        prompt_name = prompt_name or model.default_prompt_name
        check_prompt(model, prompt_name)
        self._prompt = model.prompts[prompt_name] if prompt_name else None
        truncate_at(model, max_length)
        self._transformer.unpad_inputs = False  # batches are padded here and have almost no padding
        dtype: torch.dtype = getattr(torch, precision)
        # on a CPU autocast is as fast and four times as exact; elsewhere it would keep two copies of the weights
        self._autocast = device.type == "cpu" and dtype != torch.float32
        cast_parameters(model, torch.float32 if self._autocast else dtype)
        self._model = model.to(device).eval()
        self._leaves_out = leaves_out(model.tokenizer)
        self._device, self._dtype, self._batch_tokens = device, dtype, batch_tokens

    def prepare(self, sentences: list[str]) -> Window:
        """Tokenize, sort by length, and cut into batches. May run in another thread than `encode`."""
        order = {sentence: place for place, sentence in enumerate(dict.fromkeys(sentences))}
        places = np.fromiter((order[sentence] for sentence in sentences), np.int64, len(sentences))
        # a prompt takes tokens too, so the model then cuts the text earlier than `shortened` does
        texts = shortened(self._model.tokenizer, list(order), self._model.max_seq_length)
        features = self._model.preprocess(texts, prompt=self._prompt, processing_kwargs=UNPADDED)
        repeats = np.bincount(places, minlength=len(order))
        lengths = np.fromiter(map(len, features["input_ids"]), np.int64, len(order))
        by_sentence = {name: values for name, values in features.items() if isinstance(values, list)}
        shared = {name: value for name, value in features.items() if name not in by_sentence}
        batches = []
        for chosen in self.cut(lengths):
            ragged = {name: [values[place] for place in chosen] for name, values in by_sentence.items()}
            padded = dict(self._model.tokenizer.pad(ragged, return_tensors="pt"))
            batches.append(
                Batch(
                    torch.from_numpy(chosen),
                    {**padded, **shared},
                    int(repeats[chosen].sum()),
                    int(lengths[chosen].sum()),
                )
            )
        unknown = self._unknown(features["input_ids"], repeats)
        lost, characters = self._left_out(texts, places)
        return Window(len(order), places, batches, int(repeats @ lengths), unknown, characters, lost)

    @torch.inference_mode()
    def encode(self, window: Window, progress: Callable[[int, int], object] = lambda rows, tokens: None) -> Floats:
        """Embeddings of all rows of the window, float32 [rows, dimension]; 0 for a sentence without tokens.

        A model with `truncate_dim` gives the first numbers of its modules' output.

        Args:
            progress: called with the numbers of rows and tokens of every batch.
        """
        dimension = self._model.get_embedding_dimension()
        found = torch.zeros(window.distinct, dimension, device=self._device)
        for batch in window.batches:
            features = {
                name: value.to(self._device, non_blocking=True) if isinstance(value, Tensor) else value
                for name, value in batch.features.items()
            }
            with self._computation():
                embeddings = self._model(features)["sentence_embedding"]
            found[batch.places.to(self._device, non_blocking=True)] = embeddings[:, :dimension].float()
            progress(batch.rows, batch.tokens)
        rows: Floats = found.cpu().numpy()[window.places]
        return rows

    def _unknown(self, rows: list[list[int]], repeats: NDArray[np.int64]) -> int:
        token = unknown_id(self._model.tokenizer)
        return 0 if token is None else int(repeats @ [ids.count(token) for ids in rows])

    def _left_out(self, texts: list[str], places: NDArray[np.int64]) -> tuple[int, int]:
        if not self._leaves_out:
            return 0, 0
        return left_out(self._model.tokenizer, [texts[place] for place in places])

    def _computation(self) -> AbstractContextManager[Any]:
        return torch.autocast("cpu", self._dtype) if self._autocast else nullcontext()

    def cut(self, lengths: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """Sentence indices of each batch: longest first, as many as fit `batch_tokens` when padded to the longest."""
        order = np.argsort(-lengths, kind="stable")
        order = order[lengths[order] > 0]
        batches, start = [], 0
        while start < len(order):
            size = max(1, self._batch_tokens // int(lengths[order[start]]))
            batches.append(order[start : start + size])
            start += size
        return batches
