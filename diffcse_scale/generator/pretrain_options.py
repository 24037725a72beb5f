"""The options of masked-LM training; apart from the training itself, so that `--help` need not import torch."""

from __future__ import annotations

import os
import shlex

from pydantic import Field, model_validator

from diffcse_scale.recipe import HEADER, SEPARATOR, Columns, DataRecipe, OneOrMore, Section, Separator, Share


class PretrainOptions(Section):
    """What to train, on what, for how long."""

    files: OneOrMore = Field(
        description="the corpus, as data.files of a recipe; $VARIABLES are expanded, and kept in the record"
    )
    columns: Columns = Field(None, description="those that hold text; found by itself if absent")
    separator: Separator = Field(None, description=SEPARATOR)
    header: bool | None = Field(None, description=HEADER)
    output: str = Field(description="folder to write; must not exist, or be empty")
    base: str | None = Field(None, description="continue from this masked LM (folder, Hub name, 'embedded')")
    layers: int = Field(4, ge=1, description="from scratch: layers of the BERT")
    hidden: int = Field(256, ge=1, description="from scratch: width")
    heads: int = Field(4, ge=1, description="from scratch: attention heads; must divide hidden")
    intermediate: int | None = Field(None, ge=1, description="from scratch: feed-forward width; 4 x hidden if absent")
    max_positions: int = Field(512, ge=3, description="from scratch: the longest sentence the model can ever read")
    tokenizer: str | None = Field(None, description="from scratch: use this tokenizer instead of learning one")
    vocab_size: int = Field(30_000, ge=6, description="entries of the WordPiece vocabulary that is learnt")
    lowercase: bool = Field(
        True, description="the learnt vocabulary is lower-cased and without accents, as bert-uncased"
    )
    character_coverage: Share = Field(
        0.9995,
        description="the learnt vocabulary spells out so much of the text; rarer characters become [UNK]",
    )
    max_length: int = Field(128, ge=3, description="tokens a sentence, special ones included; longer are truncated")
    limit: int | None = Field(None, ge=1, description="use only the first so many sentences")
    workers: int | None = Field(None, ge=1, description="processes that clean and tokenize; all cores if absent")
    held_out: int = Field(1000, ge=1, description="sentences kept from training, for the accuracy in the record")
    steps: int = Field(10_000, ge=1, description="optimizer steps")
    seconds: float | None = Field(None, gt=0, description="stop after so many seconds even if steps remain")
    batch_size: int = Field(128, ge=1, description="sentences a step and device")
    learning_rate: float = Field(5e-4, gt=0, description="peak; linear decay to 0")
    warmup: Share = Field(0.05, description="share of the steps over which the learning rate rises from 0")
    weight_decay: float = Field(0.01, ge=0)
    dropout: float | None = Field(
        None, ge=0, lt=1, description="in this training only (short ones want 0); the model's own if absent"
    )
    masking_ratio: Share = Field(0.15, description="share of tokens to predict: 80% [MASK], 10% random, 10% kept")
    bf16: bool = Field(False, description="autocast to bfloat16 while training")
    store_bf16: bool = Field(False, description="write the weights in bfloat16, half the size; they load as float32")
    seed: int = Field(42, ge=0)
    log_every: int = Field(100, ge=1, description="steps between points of the loss curve")

    @model_validator(mode="after")
    def _consistent(self) -> PretrainOptions:
        if self.hidden % self.heads:
            raise ValueError(f"heads ({self.heads}) must divide hidden ({self.hidden})")
        if self.base is None and self.max_length > self.max_positions:
            raise ValueError(f"max_length ({self.max_length}) is more than max_positions ({self.max_positions})")
        scratch = {"layers", "hidden", "heads", "intermediate", "max_positions", "tokenizer", "vocab_size"}
        if self.base is not None and (unused := sorted(scratch & self.model_fields_set)):
            raise ValueError(f"base brings its own size and tokenizer; remove {', '.join(unused)}")
        return self

    def data(self) -> DataRecipe:
        """The corpus, as a recipe has it."""
        same = ("columns", "separator", "header", "limit", "max_length", "workers")
        files = [os.path.expandvars(name) for name in self.files]
        return DataRecipe(files=files, **{name: getattr(self, name) for name in same})

    def command(self) -> str:
        """The command line that has these options, for a shell."""
        words = ["diffcse-scale", "pretrain-generator"]
        for name, value in self.model_dump(exclude_defaults=True).items():
            flag = name.replace("_", "-")
            if isinstance(value, bool):
                words.append(f"--{flag}" if value else f"--no-{flag}")
                continue
            for item in value if isinstance(value, list) else [value]:
                words += [f"--{flag}", str(item)]
        return shlex.join(words)
