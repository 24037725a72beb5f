"""What is measured: one cell of the grid, and the networks and sentences it is measured with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import (
    AutoConfig,
    BertConfig,
    DistilBertConfig,
    PreTrainedConfig,
)

from diffcse_scale.environment import native_bfloat16
from diffcse_scale.errors import InputError
from diffcse_scale.model.backbone import load_tokenizer, resolve
from diffcse_scale.model.compiled import check_compile
from diffcse_scale.recipe import EMBEDDED, DataRecipe, Recipe, nearest
from diffcse_scale.shipped import shipped
from diffcse_scale.text.batches import Batches
from diffcse_scale.text.tokenizers import Tokenizers
from diffcse_scale.text.tokens import tokenize
from diffcse_scale.training.engine import load_deepspeed_config

# shapes of encoder and generator, with random weights: time does not depend on what a network has learnt
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
PRECISIONS = ("fp32", "bf16")
OURS = "diffcse-scale"


@dataclass(frozen=True)
class Cell:
    """One setting of everything that a step's time depends on.

    Attributes:
        implementation: ours, or a baseline's name.
        backbone: a key of `SHAPES`, or a model folder or Hub name whose configuration is taken.
        sentences: the global batch.
        length: tokens of every sentence, or the most that a sentence of `text` keeps.
        precision: `fp32`, or `bf16` for products of what is trained (weights stay float32).
        generator_precision: the same for the generator.
        chunk: sentences of a share whose activations are alive at once; None for all.
        ranks: processes.
        text: a corpus file; None for sentences that all have `length` tokens.
        tokenizer: of `text`.
        rtd_weight: 0 leaves generator and discriminator out.
        packed: False computes padding too.
        compiled: layers go through torch.compile.
        zero_stage: of ours.
        returns_memory: freed blocks go back to the system at once: less memory, more time (`host_memory`).
    """

    implementation: str = OURS
    backbone: str = "bert-base"
    sentences: int = 64
    length: int = 32
    precision: str = "fp32"
    generator_precision: str = "fp32"
    chunk: int | None = None
    ranks: int = 1
    text: str | None = None
    tokenizer: str | None = None
    rtd_weight: float = 0.005
    packed: bool = True
    returns_memory: bool = False
    compiled: bool = False
    zero_stage: int = 2

    @property
    def ours(self) -> bool:
        """Whether it is no baseline."""
        return self.implementation == OURS

    def recipe(self) -> Recipe:
        """The recipe that trains so. Its names of networks are never loaded."""
        values: dict[str, Any] = {
            "name": "benchmark",
            "epochs": 1e6,
            "model": {"encoder": EMBEDDED, "generator": EMBEDDED, "compile": self.compiled},
            "data": {"files": self.text or EMBEDDED, "max_length": self.length},
            "batch": {"sentences": self.sentences, "chunk": self.chunk, "packed": self.packed},
            # the official arithmetic pads all sentences to the longest of the batch
            "objective": {"rtd_weight": self.rtd_weight, "fidelity": "sampled" if self.ours else "official"},
            "optimizer": {"learning_rate": 7e-6},
        }
        return Recipe.model_validate(values)

    def deepspeed_config(self) -> dict[str, Any]:
        """The stage's shipped one, with or without reduced products."""
        autocast = {"enabled": self.precision == "bf16", "dtype": "bfloat16"}
        config = load_deepspeed_config(shipped("ds_configs") / f"zero{self.zero_stage}.json")
        return {**config, "torch_autocast": autocast}


def configurations(backbone: str) -> tuple[PreTrainedConfig, PreTrainedConfig]:
    """Those of encoder and generator: of a shape, or both of one model.

    Raises:
        InputError: neither a shape nor a model.
    """
    if backbone in SHAPES:
        return SHAPES[backbone]
    try:
        config = AutoConfig.from_pretrained(resolve(backbone))
    except (OSError, ValueError, InputError):
        raise InputError(
            f"Backbone {backbone!r} is neither a model nor one of {', '.join(SHAPES)}{nearest(backbone, SHAPES)}."
        ) from None
    return config, config


class EqualSentences:
    """A corpus of random tokens, every sentence as long as the next; read as a `TokenizedCorpus` is."""

    streams, columns, views, fingerprint = 1, 1, 2, "random"

    def __init__(self, count: int, length: int, vocabulary: int, tokenizers: Tokenizers) -> None:
        tokenizer = tokenizers.encoder
        self._ids = np.random.default_rng(0).integers(5, min(vocabulary, len(tokenizer)), (count, length))
        self._ids[:, 0], self._ids[:, -1] = tokenizer.cls_token_id, tokenizer.sep_token_id

    def __len__(self) -> int:
        return len(self._ids)

    def lengths(self, view: int = 0, indices: NDArray[np.int64] | None = None, stream: int = 0) -> NDArray[np.int64]:
        """As `TokenizedCorpus.lengths`."""
        return np.full(len(self if indices is None else indices), self._ids.shape[1])

    def padded(
        self, indices: NDArray[np.int64], view: int, length: int, padding: int, stream: int = 0
    ) -> NDArray[np.int64]:
        """As `TokenizedCorpus.padded`."""
        return self._ids[indices]


def tokenizers_of(cell: Cell) -> Tokenizers:
    """Those of the text; where tokens are random, only the special ones matter."""
    return Tokenizers.shared(load_tokenizer(cell.tokenizer or EMBEDDED))


def batches_of(cell: Cell, rank: int = 0) -> Batches:
    """The cell's sentences as training would meet them.

    Raises:
        InputError: the text cannot be read, or is less than a batch.
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


def has_bfloat16() -> bool:
    """Whether this machine's device makes products in bfloat16 by itself."""
    if torch.accelerator.is_available():
        return native_bfloat16(torch.accelerator.current_accelerator() or torch.device("cpu"))
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def check(cells: Sequence[Cell]) -> None:
    """Find what cannot be measured before anything is.

    Raises:
        InputError: names it.
    """
    for cell in cells:
        config, _ = configurations(cell.backbone)
        if cell.text is not None and not Path(cell.text).is_file():
            raise InputError(f"Text {cell.text} is no file; give one sentence a line, or leave --text out.")
        if cell.text is not None and cell.tokenizer is None:
            raise InputError("--text needs --tokenizer: the tokenizer's folder or Hub name.")
        if cell.tokenizer is not None and len(load_tokenizer(cell.tokenizer)) > config.vocab_size:
            raise InputError(
                f"Tokenizer {cell.tokenizer} has more tokens than the {config.vocab_size:,} of {cell.backbone}."
            )
        if "bf16" in (cell.precision, cell.generator_precision) and not has_bfloat16():
            raise InputError(
                "There are no bfloat16 products here; leave --precision and --generator-precision bf16 out."
            )
        if cell.compiled:
            check_compile(cell.zero_stage)
        batches_of(cell)
