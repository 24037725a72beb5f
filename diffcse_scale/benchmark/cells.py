"""The networks and sentences with which a cell of the grid is measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import (
    AutoModel,
    BertConfig,
    DistilBertConfig,
    PreTrainedConfig,
)

from diffcse_scale.benchmark.grid import Cell, check_text
from diffcse_scale.foundation.environment import native_bfloat16
from diffcse_scale.foundation.errors import InputError, nearest, quoted
from diffcse_scale.model.backbone import load_config, load_tokenizer
from diffcse_scale.model.compiled import check_compile
from diffcse_scale.model.fits import positions
from diffcse_scale.recipe import EMBEDDED, DataRecipe
from diffcse_scale.text.batches import Batches
from diffcse_scale.text.tokenizers import Tokenizers, known_ids
from diffcse_scale.text.tokens import tokenize

# shapes of encoder and generator; weights are random, because they do not affect the time
SHAPES: dict[str, tuple[PreTrainedConfig, PreTrainedConfig]] = {
    "bert-base": (BertConfig(), DistilBertConfig()),
    "bert-large": (
        BertConfig(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096),
        DistilBertConfig(),
    ),
    "bert-small": (
        BertConfig(hidden_size=512, num_hidden_layers=4, num_attention_heads=8, intermediate_size=2048),
        DistilBertConfig(dim=512, n_layers=2, n_heads=8, hidden_dim=2048),
    ),
}


def configurations(backbone: str) -> tuple[PreTrainedConfig, PreTrainedConfig]:
    """Configurations of encoder and generator: from a shape, or both from one model.

    Raises:
        InputError: `backbone` is neither a shape nor a model.
    """
    if backbone in SHAPES:
        return SHAPES[backbone]
    try:
        config = load_config(backbone)
    except InputError:
        raise InputError(
            f"Backbone {quoted(backbone)} is neither a model nor one of {', '.join(SHAPES)}{nearest(backbone, SHAPES)}."
        ) from None
    return config, config


class EqualSentences:
    """A corpus of random tokens with sentences of equal length and the interface of `TokenizedCorpus`."""

    streams, columns, views, fingerprint = 1, 1, 2, "random"

    def __init__(self, count: int, length: int, vocabulary: int, tokenizers: Tokenizers) -> None:
        tokenizer = tokenizers.encoder
        self._ids = np.random.default_rng(0).integers(5, min(vocabulary, len(tokenizer)), (count, length))
        self._ids[:, 0], self._ids[:, -1] = tokenizer.cls_token_id, tokenizer.sep_token_id

    def __len__(self) -> int:
        return len(self._ids)

    def lengths(self, view: int = 0, indices: NDArray[np.int64] | None = None, stream: int = 0) -> NDArray[np.int64]:
        """See `TokenizedCorpus.lengths`."""
        return np.full(len(self if indices is None else indices), self._ids.shape[1])

    def longest(self, stream: int = 0) -> NDArray[np.unsignedinteger]:
        """See `TokenizedCorpus.longest`."""
        return np.full(len(self), self._ids.shape[1], np.min_scalar_type(self._ids.shape[1]))

    def padded(
        self, indices: NDArray[np.int64], view: int, length: int, padding: int, stream: int = 0
    ) -> NDArray[np.int64]:
        """See `TokenizedCorpus.padded`."""
        return self._ids[indices]


def tokenizers_of(cell: Cell) -> Tokenizers:
    """The tokenizers of the cell's text. With random tokens only the special tokens matter."""
    return Tokenizers.shared(load_tokenizer(cell.tokenizer or EMBEDDED))


def batches_of(cell: Cell, rank: int = 0) -> Batches:
    """The cell's sentences in batches, as in training.

    Raises:
        InputError: the text cannot be read or has less than a batch.
    """
    tokenizers = tokenizers_of(cell)
    vocabulary = configurations(cell.backbone)[0].vocab_size
    recipe = cell.recipe()
    tokens: Any
    if cell.text is None:
        tokens = EqualSentences(max(4 * cell.sentences, 4096), cell.length, vocabulary, tokenizers)
    else:
        data = DataRecipe(files=[cell.text], max_length=cell.length, limit=max(16 * cell.sentences, 20_000))
        tokens = tokenize(data, tokenizers.streams)
    return Batches(tokens, tokenizers, recipe, rank, cell.ranks)


def _check_length(cell: Cell) -> None:
    for config in configurations(cell.backbone):
        with torch.device("meta"):
            limit = positions(AutoModel.from_config(config))
        if limit is not None and cell.length > limit:
            raise InputError(f"--length {cell.length} is more than the {limit} positions of {cell.backbone}; lower it.")


def has_bfloat16() -> bool:
    """Whether this machine's device has native bfloat16 products."""
    if torch.accelerator.is_available():
        return native_bfloat16(torch.accelerator.current_accelerator() or torch.device("cpu"))
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def check(cells: Sequence[Cell]) -> None:
    """Check all cells before the first is measured.

    Raises:
        InputError: a cell cannot be measured; the message says why.
    """
    for cell in cells:
        config, _ = configurations(cell.backbone)
        _check_length(cell)
        check_text(cell.text, cell.tokenizer)
        if cell.tokenizer is not None and known_ids(load_tokenizer(cell.tokenizer))[-1] >= config.vocab_size:
            raise InputError(
                f"Tokenizer {cell.tokenizer} has more tokens than the {config.vocab_size:,} of {cell.backbone}."
            )
        if "bf16" in (cell.precision, cell.generator_precision) and not has_bfloat16():
            raise InputError(
                "This device has no bfloat16 products; leave out --precision and --generator-precision bf16."
            )
        if cell.compiled:
            check_compile(cell.zero_stage)
        batches_of(cell)
