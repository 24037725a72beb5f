"""The grid of a benchmark: its cells and the values that they combine. Nothing here needs torch."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from diffcse_scale.engine.config_file import load_deepspeed_config
from diffcse_scale.foundation.errors import InputError, quoted
from diffcse_scale.foundation.paths import given_path
from diffcse_scale.foundation.shipped import shipped
from diffcse_scale.recipe import EMBEDDED, Recipe

PRECISIONS = ("fp32", "bf16")
OURS = "diffcse-scale"
# functions that make a step: (cell, networks, device, phases) -> step. Baselines exist only in a checkout
MAKERS = {
    OURS: "diffcse_scale.benchmark.step_cell:our_step",
    "official": "studies.baselines.official_step:official_step",
    "sentence-transformers": "studies.baselines.sentence_transformers_step:sentence_transformers_step",
}


@dataclass(frozen=True)
class Cell:
    """One setting of everything that a step's time depends on.

    Attributes:
        implementation: ours, or a baseline's name.
        backbone: a key of `SHAPES`, or a model folder or Hub name to take the configuration from.
        sentences: the global batch.
        length: tokens of every sentence, or the maximum for a sentence of `text`.
        precision: `fp32`, or `bf16` for products in the trained networks (weights stay float32).
        generator_precision: the same for the generator.
        chunk: sentences of a share whose activations are in memory at once; None for all.
        ranks: number of processes.
        text: a corpus file; None for sentences that all have `length` tokens.
        tokenizer: tokenizer of `text`.
        rtd_weight: 0 leaves out generator and discriminator.
        packed: False also computes padding.
        compiled: compile layers with torch.compile.
        zero_stage: ZeRO stage of our implementation.
        returns_memory: return freed blocks of at least 1 MB to the system at once. Takes less memory and more time.
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
        """Whether the implementation is ours and not a baseline."""
        return self.implementation == OURS

    def recipe(self) -> Recipe:
        """The recipe with these settings. The networks that it names are never loaded."""
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
        """The stage's shipped configuration, with products in the cell's precision."""
        autocast = {"enabled": self.precision == "bf16", "dtype": "bfloat16"}
        config = load_deepspeed_config(shipped("ds_configs") / f"zero{self.zero_stage}.json")
        return {**config, "torch_autocast": autocast}


def grid(
    implementations: Sequence[str],
    backbones: Sequence[str],
    sentences: Sequence[int],
    lengths: Sequence[int],
    precisions: Sequence[str],
    chunks: Sequence[int],
    compiled: bool = False,
    zero_stage: int = Cell.zero_stage,
    **same: Any,
) -> list[Cell]:
    """All combinations as cells. A chunk of 0 means no chunks.

    Baselines are measured once for each backbone, batch, length and precision, because they have no chunks. If
    sentence-transformers is one of them, ours is also measured without RTD, for a fair comparison.

    Raises:
        InputError: a value cannot be measured.
    """
    asked = [*precisions, same.get("generator_precision", Cell.generator_precision)]
    if unknown := [precision for precision in asked if precision not in PRECISIONS]:
        raise InputError(f"Precision {quoted(unknown[0])} is not known; there are {', '.join(PRECISIONS)}.")
    for implementation in implementations:
        check_implementation(implementation)
    check_text(same.get("text"), same.get("tokenizer"))
    contrastive = "sentence-transformers"
    cells = []
    for backbone, size, length, precision in itertools.product(backbones, sentences, lengths, precisions):
        for implementation, chunk in itertools.product(implementations, chunks):
            if implementation != OURS and (chunk != chunks[0] or same.get("ranks", 1) > 1):
                continue
            of_ours: dict[str, Any] = {"chunk": chunk or None, "compiled": compiled, "zero_stage": zero_stage}
            weights = [0.0] if implementation == contrastive else [Cell.rtd_weight]
            if implementation == OURS and contrastive in implementations:
                weights.append(0.0)
            cells += [
                Cell(
                    implementation,
                    backbone,
                    size,
                    length,
                    precision,
                    rtd_weight=weight,
                    **(of_ours if implementation == OURS else {}),
                    **same,
                )
                for weight in weights
            ]
    return cells


def check_implementation(name: str) -> None:
    """Raise InputError unless there is an implementation with this name."""
    if name not in MAKERS:
        raise InputError(f"Implementation {quoted(name)} is not known; there are {', '.join(MAKERS)}.")


def check_text(text: str | None, tokenizer: str | None) -> None:
    """Raise InputError unless `text` is a file with a tokenizer, or None."""
    if text is not None and not given_path(text).is_file():
        raise InputError(f"Text {text} is not a file; give a file with one sentence per line, or leave out --text.")
    if text is not None and tokenizer is None:
        raise InputError("--text needs --tokenizer: the tokenizer's folder or Hub name.")
