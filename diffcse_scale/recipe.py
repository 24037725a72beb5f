"""A recipe says WHAT to train: backbone, text, objective, schedule. This file is its schema.

A recipe is a YAML file of `recipes/` (named without path or ending) or a path to one of your own. Any field can
be set on the command line as `section.field=value`. How a run is sharded (ZeRO stage, precision, offload) is
never part of a recipe; that is a DeepSpeed configuration, see `ds_configs/`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

EMBEDDED = "embedded"


SEPARATORS = {"comma": ",", "semicolon": ";", "tab": "\t", "pipe": "|"}  # of the fields of a table that is text


def _as_list(value: Any) -> Any:
    """One name without a list; a number is the name of a column that has no other."""
    names = value if isinstance(value, list) else [value]
    numbers = all(isinstance(name, str | int) and not isinstance(name, bool) for name in names)
    return list(map(str, names)) if numbers else value


def _as_columns(value: Any) -> Any:
    """Names or numbers, also in one text with commas between: `a,b`; a name with a comma in it is given in a list."""
    return [name.strip() for name in value.split(",")] if isinstance(value, str) else _as_list(value)


def _as_separator(value: Any) -> Any:
    """The character that a word of `SEPARATORS` means, or a character itself."""
    value = {**SEPARATORS, "\\t": "\t"}.get(value, value) if isinstance(value, str) else value
    if value is not None and not (isinstance(value, str) and len(value) == 1 and value not in '"\r\n'):
        raise ValueError(f"give {', '.join(SEPARATORS)}, or one other character")
    return value


def _a_folders_name(name: str) -> str:
    if not name.strip() or name in (".", "..") or "/" in name or not name.isprintable():
        raise ValueError("must be the name of a folder, without / and control characters; --output takes a path")
    if len(name.encode(errors="replace")) > 200:
        raise ValueError("must have at most 200 bytes, as it names a folder")
    return name


Share = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Pooling = Literal["cls", "mean", "last", "first_last_mean"]  # the rows of model/pooling.py
OptimizerName = Literal["adamw"]  # the rows of engine/optimizer.py
Schedule = Literal["linear", "cosine", "constant"]  # the rows of training/schedule.py
FILE_FORMATS = "text, .gz/.xz/.zst text, .jsonl, .csv, .tsv, .parquet"  # in help texts; the table is text/formats.py
SEPARATOR = (
    f"of the fields of .csv and .tsv files: {', '.join(SEPARATORS)}, or a character; what a file leaves no doubt of, "
    "if absent"
)
HEADER = (
    "the first row of .csv and .tsv files names the columns; without a header they are called 1, 2, 3; what a file "
    "leaves no doubt of, if absent"
)
Separator = Annotated[str | None, BeforeValidator(_as_separator)]
OneOrMore = Annotated[list[str], BeforeValidator(_as_list), Field(min_length=1)]
Columns = Annotated[Annotated[list[str], Field(min_length=1, max_length=3)] | None, BeforeValidator(_as_columns)]
FolderName = Annotated[str, AfterValidator(_a_folders_name)]


LARGEST = 2**63 - 1  # of whole numbers: tensors, seeds and files hold 64 bits


class Section(BaseModel):
    """Unknown keys are refused, and what no program could work with; a recipe never changes once it is read."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*")
    @classmethod
    def _usable(cls, value: Any) -> Any:
        for part in value if isinstance(value, list | tuple) else (value,):
            if isinstance(part, int) and abs(part) > LARGEST:
                raise ValueError(f"must be at most {LARGEST}")
            if isinstance(part, str) and any(letter == "\0" or "\ud800" <= letter <= "\udfff" for letter in part):
                raise ValueError("holds a NUL or half of a surrogate pair, which is no text")
        return value


class LoraRecipe(Section):
    """Low-rank adapters on a frozen encoder (arXiv 2106.09685), through `peft`."""

    rank: int = Field(16, ge=1, le=2**16, description="rank of the two matrices that each adapted layer gets")
    alpha: float = Field(32.0, gt=0, description="an adapter's output is multiplied by alpha / rank")
    dropout: Share = Field(
        0.1,
        description="dropout before each adapter; it cannot tell two views apart, as adapters begin as nothing: "
        "model.dropout must, in a backbone that has none",
    )
    target_modules: Annotated[list[str] | None, BeforeValidator(_as_list)] = Field(
        None, min_length=1, description="names of the linear layers that get adapters; all of them if absent"
    )
    base: Literal["float32", "bfloat16", "nf4"] = Field(
        "float32", description="how the frozen weights are held; 'nf4' is QLoRA's 4 bits, through bitsandbytes"
    )
    export: Literal["merged", "adapter"] = Field(
        "merged", description="the exported model: whole weights in float32, or the adapters beside the base's name"
    )


class ModelRecipe(Section):
    """The networks."""

    encoder: str = Field(description="the backbone that is trained and kept: a folder, a Hub name, or 'embedded'")
    discriminator: str | None = Field(
        None,
        description="another masked language model as discriminator, which may have a tokenizer of its own (the "
        "generator's then is the same); absent: a copy of the encoder",
    )
    generator: str | None = Field(
        None, description="the frozen masked language model that edits sentences; needed unless rtd_weight is 0"
    )
    generator_precision: Literal["float32", "bfloat16"] | None = Field(
        None, description="what the generator computes in; absent: bfloat16 on accelerators that have it, else float32"
    )
    pooling: Pooling = Field("cls", description="how token vectors become the sentence embedding h")
    attention: Literal["bidirectional"] | None = Field(
        None, description="'bidirectional' lets the tokens of a decoder-only encoder see later ones too"
    )
    cudnn_attention: bool = Field(
        False,
        description="cuDNN may compute attention on a GPU, where PyTorch prefers it and dropout is a multiple of 1/16; "
        "it makes a plan for every new shape",
    )
    dropout: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="every dropout probability in the encoder; those of its configuration if absent; 0 says that equal "
        "views of a sentence are meant",
    )
    lora: LoraRecipe | None = Field(None, description="train adapters and leave the encoder itself as it is")
    projection: Literal["batchnorm", "mlp", "none"] = Field(
        "batchnorm", description="the network between h and z, used in training only"
    )
    checkpoint: str | None = Field(
        None, description="folder of an official DiffCSE or SimCSE checkpoint whose weights replace the initial ones"
    )
    gradient_checkpointing: bool = Field(False, description="recompute activations in backward to save memory")
    compile: bool = Field(
        False, description="the networks' layers go through torch.compile, which needs a C++ compiler and ZeRO below 3"
    )
    trust_remote_code: bool = Field(False, description="allow code that comes with a Hub model to run")


class DataRecipe(Section):
    """The corpus."""

    files: OneOrMore = Field(
        description=f"{FILE_FORMATS}; paths, addresses (hf://...), globs, a Hub dataset, or 'embedded'"
    )
    columns: Columns = Field(
        None,
        description="a column of sentences, two of pairs, or three with a hard negative, by name or number, as a,b,c; "
        "found by their usual names if absent",
    )
    max_length: int = Field(
        32, ge=3, le=2**20, description="tokens a sentence, special ones included; longer are truncated"
    )
    separator: Separator = Field(None, description=SEPARATOR)
    header: bool | None = Field(None, description=HEADER)
    limit: int | None = Field(None, ge=1, description="use only the first so many sentences that remain after cleaning")
    strict: bool = Field(False, description="an undecodable or empty line stops the run instead of being skipped")
    workers: int | None = Field(
        None, ge=1, le=4096, description="processes that tokenize; the number of cores if absent"
    )
    cache_dir: str | None = Field(None, description="where tokenized text is kept; ~/.cache/diffcse-scale if absent")


class BatchRecipe(Section):
    """Sizes of a training step."""

    sentences: int = Field(
        64, ge=2, le=2**30, description="the global batch: sentences whose embeddings compete in one InfoNCE"
    )
    chunk: int | None = Field(
        None,
        ge=1,
        description="sentences of a device's share whose activations are alive at once; absent: all of them",
    )
    length_groups: int = Field(
        1, ge=1, description="without chunks: a share is sorted by length and padded in so many groups, to save padding"
    )
    packed: bool = Field(
        True,
        description="networks compute no padding, where their family allows it; never with fidelity 'official'",
    )
    exchange: Literal["gather", "ring"] = Field(
        "gather",
        description="how the embeddings of different devices meet in InfoNCE: every device holds all of them, or they "
        "travel round a ring, which is slower and whose memory does not grow with the number of devices",
    )

    @model_validator(mode="after")
    def _one_way_to_cut(self) -> BatchRecipe:
        if self.chunk is not None and self.length_groups != 1:
            raise ValueError("length_groups must be 1 with batch.chunk: every chunk is padded on its own already")
        return self


class ObjectiveRecipe(Section):
    """contrastive_weight * InfoNCE + rtd_weight * RTD (DiffCSE, equation 4)."""

    fidelity: Literal["sampled", "official"] = Field(
        "sampled", description="'sampled' follows the paper's words, 'official' the official program's arithmetic"
    )
    temperature: float = Field(0.05, gt=0, description="the cosine is divided by it")
    contrastive_weight: float = Field(1.0, ge=0, description="weight of InfoNCE; 0 is the paper's RTD-only ablation")
    rtd_weight: float = Field(
        0.0041,
        ge=0,
        description="lambda, the weight of replaced-token detection; 0 is SimCSE; published is 0.005, for fidelity "
        "'official', which is about 0.0041 where padding does not count",
    )
    masking_ratio: Share = Field(0.30, description="share of tokens corrupted before the generator")
    edits: int | None = Field(
        None,
        ge=1,
        description="edited versions of each sentence, made before by `diffcse-scale prepare --edits`: training then "
        "needs no generator; absent: it edits while training",
    )
    hard_negative_weight: float = Field(
        0.0, description="added to the logit of a sentence with its own hard negative (three columns)"
    )

    @model_validator(mode="after")
    def _something_to_learn(self) -> ObjectiveRecipe:
        if self.contrastive_weight == 0 and self.rtd_weight == 0:
            raise ValueError("contrastive_weight and rtd_weight are both 0: there is nothing to learn")
        if self.edits is not None and self.fidelity == "official":
            raise ValueError("edits must be absent: fidelity 'official' edits with dropout, anew in every step")
        return self


class OptimizerRecipe(Section):
    """The optimizer and its schedule."""

    name: OptimizerName = Field("adamw", description="the optimizer")
    learning_rate: float = Field(gt=0, description="at its largest")
    weight_decay: float = Field(0.0, ge=0, description="decoupled; not applied to biases and normalisation weights")
    betas: tuple[Decay, Decay] = Field((0.9, 0.999), description="decay of AdamW's two moments")
    eps: float = Field(1e-8, gt=0, description="added to the root of the second moment")
    schedule: Schedule = Field("linear", description="decay to 0 after the warm-up")
    warmup: Share = Field(0.0, description="share of all steps over which the learning rate rises from 0")
    clip: float = Field(1.0, ge=0, description="largest norm of the whole gradient; 0 turns clipping off")


class EvaluationRecipe(Section):
    """What is measured while training."""

    data: str | None = Field(
        None,
        description="folder with STSB/dev.tsv, file of score TAB sentence TAB sentence, 'hub', 'embedded'; or none",
    )
    every: int = Field(125, ge=1, description="steps between evaluations")
    max_length: int = Field(
        128, ge=3, le=2**20, description="tokens a sentence in evaluation and in the exported model"
    )


class Recipe(Section):
    """Everything that a result is a function of, together with the seed."""

    name: FolderName = Field(description="of the run; its folder is runs/NAME unless --output says otherwise")
    seed: int = Field(42, ge=0, description="of everything that is drawn: order, dropout, corruption, sampling")
    epochs: float = Field(1.0, gt=0, le=1e9, description="passes over the corpus; a fraction is allowed")
    max_steps: int | None = Field(None, ge=1, description="stop after so many steps, whatever the epochs say")
    log_every: int = Field(10, ge=1, description="steps between log lines")
    checkpoint_every: int = Field(500, ge=1, description="steps between checkpoints")
    keep_checkpoints: int = Field(2, ge=1, description="how many of the newest checkpoints stay, beside the best")
    checkpoint_background: bool = Field(True, description="write checkpoints while training goes on")
    max_skipped_steps: int = Field(
        5, ge=1, description="steps in a row whose loss or gradient is not finite, and which are skipped, before a stop"
    )
    model: ModelRecipe
    data: DataRecipe
    batch: BatchRecipe = BatchRecipe()
    objective: ObjectiveRecipe = ObjectiveRecipe()
    optimizer: OptimizerRecipe
    evaluation: EvaluationRecipe = EvaluationRecipe()

    @property
    def packed(self) -> bool:
        """Whether batches say what networks may leave out; 'official' counts padding."""
        return self.batch.packed and self.objective.fidelity != "official"

    @model_validator(mode="after")
    def _sections_agree(self) -> Recipe:
        if self.objective.rtd_weight > 0 and self.model.generator is None:
            raise ValueError("model.generator is missing: objective.rtd_weight > 0 needs a masked language model")
        if self.objective.fidelity == "official" and self.batch.length_groups != 1:
            raise ValueError("batch.length_groups must be 1: fidelity 'official' pads to the longest row of the batch")
        if self.objective.hard_negative_weight and (self.data.columns is not None and len(self.data.columns) != 3):
            raise ValueError("objective.hard_negative_weight needs three data.columns")
        if self.model.lora is not None and self.model.lora.export == "adapter":
            for field in ("attention", "checkpoint"):
                if getattr(self.model, field) is not None:
                    raise ValueError(
                        "model.lora.export must be merged: adapters are loaded onto the base as published, which "
                        f"model.{field} changes"
                    )
        return self

    def differences(self, other: dict[str, Any]) -> list[str]:
        """Lines `section.field: mine, not theirs` for each field in which `other` (a dumped recipe) differs.

        Fields that were not there yet when `other` was dumped have their defaults.
        """
        with suppress(ValidationError):
            other = type(self).model_validate(other).model_dump(mode="json")
        mine, theirs = dict(flatten(self.model_dump(mode="json"))), dict(flatten(other))
        return [
            f"{key}: {mine.get(key)!r:.80}, not {theirs.get(key)!r:.80}"
            for key in sorted(mine.keys() | theirs.keys())
            if mine.get(key) != theirs.get(key)
        ]

    @classmethod
    def lost(cls, other: dict[str, Any]) -> list[str]:
        """The fields that every recipe has and `other` (a dumped recipe) has not: it is cut."""
        try:
            cls.model_validate(other)
        except ValidationError as error:
            missing = (problem["loc"] for problem in error.errors() if problem["type"] == "missing")
            return [".".join(map(str, place)) for place in missing]
        return []


def flatten(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested sections to `section.field` and value."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
