"""The options of masked-LM training, in their own file so that `--help` need not import torch."""

from __future__ import annotations

import os
import re
import shlex
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from diffcse_scale.foundation.errors import quoted
from diffcse_scale.recipe import HEADER, SEPARATOR, Columns, DataRecipe, OneOrMore, Section, Separator, Share


def _as_codes(value: Any) -> Any:
    """Parse ISO 639 codes, separated by commas or as a list."""
    if value is None:
        return None
    codes = [code.strip() for text in ([value] if isinstance(value, str) else value) for code in text.split(",")]
    for code in codes:
        if not re.fullmatch("[a-z]{2,3}", code):
            raise ValueError(f"give codes of two or three small letters, as de or zh,ja, not {quoted(code)}")
    return codes or None


Languages = Annotated[list[str] | None, BeforeValidator(_as_codes)]


class PretrainOptions(Section):
    """The model to train, its corpus, and the length of the training."""

    files: OneOrMore = Field(
        description="The corpus, as data.files of a recipe. $VARIABLES are expanded; the record keeps their names."
    )
    columns: Columns = Field(None, description="Columns that hold text. Default: detected.")
    separator: Separator = Field(None, description=SEPARATOR)
    header: bool | None = Field(None, description=HEADER)
    output: str = Field(
        description="Folder to write. It must be empty or not exist yet. Unfinished work is kept in a folder beside it."
    )
    base: str | None = Field(None, description="Continue from this masked LM (a folder, a Hub name, or 'embedded').")
    layers: int = Field(4, ge=1, description="From scratch: number of layers.")
    hidden: int = Field(256, ge=1, description="From scratch: hidden width.")
    heads: int = Field(4, ge=1, description="From scratch: attention heads. Their number must divide the hidden width.")
    intermediate: int | None = Field(None, ge=1, description="From scratch: feed-forward width. Default: 4 x hidden.")
    max_positions: int = Field(512, ge=3, description="From scratch: most tokens that the model can ever read at once.")
    tokenizer: str | None = Field(None, description="From scratch: use this tokenizer instead of learning one.")
    vocab_size: int = Field(30_000, ge=6, description="Size of the WordPiece vocabulary to learn.")
    languages: Languages = Field(
        None,
        description="Languages of the text, such as de or zh,ja. The learnt vocabulary keeps capitals and accents "
        "unless en is the only one. Default: detected from the text.",
    )
    lowercase: bool | None = Field(
        None,
        description="Lower-case the learnt vocabulary. Accents are removed only where --languages or the text allows "
        "it. Default: chosen from the languages.",
    )
    character_coverage: Share = Field(
        0.9995,
        description="Share of the text's characters that the learnt vocabulary covers. Rarer ones become [UNK].",
    )
    max_length: int = Field(
        128, ge=3, description="Tokens per sentence, including special tokens. Longer are truncated."
    )
    limit: int | None = Field(None, ge=1, description="Use only this many sentences, the first ones.")
    workers: int | None = Field(None, ge=1, description="Processes that clean and tokenize. Default: one per core.")
    held_out: int = Field(1000, ge=1, description="Sentences held out from training to measure accuracy.")
    steps: int = Field(10_000, ge=1, description="Number of optimizer steps.")
    seconds: float | None = Field(None, gt=0, description="Stop after this many seconds even if steps remain.")
    save_minutes: float = Field(
        10, gt=0, description="Minutes between saved states. After an interruption the same command continues from one."
    )
    batch_size: int = Field(128, ge=1, description="Sentences per step and device.")
    learning_rate: float = Field(5e-4, gt=0, description="Peak learning rate. It then falls linearly to 0.")
    warmup: Share = Field(0.05, description="Share of the steps over which the learning rate rises from 0.")
    weight_decay: float = Field(0.01, ge=0, description="Weight decay of the optimizer.")
    dropout: float | None = Field(
        None, ge=0, lt=1, description="Dropout in this training only; short trainings need 0. Default: the model's own."
    )
    masking_ratio: Share = Field(0.15, description="Share of tokens to predict: 80% [MASK], 10% random, 10% kept.")
    bf16: bool = Field(False, description="Train with autocast to bfloat16.")
    store_bf16: bool = Field(False, description="Write the weights in bfloat16, half the size. They load as float32.")
    seed: int = Field(42, ge=0, description="Seed of all random choices.")
    log_every: int = Field(100, ge=1, description="Steps between points of the loss curve.")

    @model_validator(mode="after")
    def _consistent(self) -> PretrainOptions:
        if self.hidden % self.heads:
            raise ValueError(f"heads ({self.heads}) must divide hidden ({self.hidden})")
        if self.base is None and self.max_length > self.max_positions:
            raise ValueError(f"max_length ({self.max_length}) is more than max_positions ({self.max_positions})")
        learnt = {"vocab_size", "languages", "lowercase", "character_coverage"}
        scratch = {"layers", "hidden", "heads", "intermediate", "max_positions", "tokenizer", *learnt}
        if self.base is not None and (unused := sorted(scratch & self.model_fields_set)):
            raise ValueError(f"base brings its own size and tokenizer; remove {', '.join(unused)}")
        if self.tokenizer is not None and (unused := sorted(learnt & self.model_fields_set)):
            raise ValueError(f"tokenizer brings its own vocabulary; remove {', '.join(unused)}")
        return self

    def data(self) -> DataRecipe:
        """The corpus in the form of a recipe's section."""
        same = ("columns", "separator", "header", "limit", "max_length", "workers")
        files = [os.path.expandvars(name) for name in self.files]
        return DataRecipe(files=files, **{name: getattr(self, name) for name in same})

    def command(self) -> str:
        """The shell command line with these options."""
        words = ["diffcse-scale", "pretrain-generator"]
        for name, value in self.model_dump(exclude_defaults=True).items():
            flag = name.replace("_", "-")
            if isinstance(value, bool):
                words.append(f"--{flag}" if value else f"--no-{flag}")
                continue
            for item in value if isinstance(value, list) else [value]:
                words += [f"--{flag}", str(item)]
        return shlex.join(words)
