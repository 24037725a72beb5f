"""A recipe says WHAT to train: backbone, text, objective, schedule. This file is its schema.

A recipe is a YAML file in `recipes/` (named without path or suffix) or the path of your own file. Any field can be
set on the command line as `section.field=value`. How a run is sharded (ZeRO stage, precision, offload) is never part
of a recipe: it belongs in a DeepSpeed configuration, see `ds_configs/`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from diffcse_scale.recipe_values import FILE_FORMATS as FILE_FORMATS
from diffcse_scale.recipe_values import HEADER as HEADER
from diffcse_scale.recipe_values import SEPARATOR as SEPARATOR
from diffcse_scale.recipe_values import SEPARATORS as SEPARATORS
from diffcse_scale.recipe_values import Columns as Columns
from diffcse_scale.recipe_values import Decay, FolderName
from diffcse_scale.recipe_values import OneOrMore as OneOrMore
from diffcse_scale.recipe_values import OptimizerName as OptimizerName
from diffcse_scale.recipe_values import Pooling as Pooling
from diffcse_scale.recipe_values import Schedule as Schedule
from diffcse_scale.recipe_values import Section as Section
from diffcse_scale.recipe_values import Separator as Separator
from diffcse_scale.recipe_values import Share as Share

__all__ = ["BatchRecipe", "DataRecipe", "EvaluationRecipe", "LoraRecipe", "ModelRecipe", "ObjectiveRecipe"]
__all__ += ["OptimizerRecipe", "Recipe"]

EMBEDDED = "embedded"


class LoraRecipe(Section):
    """Low-rank adapters on a frozen encoder (arXiv 2106.09685), through `peft`."""

    rank: int = Field(16, ge=1, le=2**16, description="Rank of the two matrices of each adapter.")
    alpha: float = Field(32.0, gt=0, description="An adapter's output is multiplied by alpha / rank.")
    dropout: Share = Field(
        0.1,
        description="Dropout before each adapter. It does not make the two views differ at the start, because adapters "
        "start at zero; in a backbone without dropout set model.dropout too.",
    )
    target_modules: OneOrMore | None = Field(
        None, description="Names of the linear layers that get adapters. Default: all linear layers."
    )
    base: Literal["float32", "bfloat16", "nf4"] = Field(
        "float32", description="Dtype of the frozen weights. 'nf4' is QLoRA's 4 bits and needs bitsandbytes."
    )
    export: Literal["merged", "adapter"] = Field(
        "merged",
        description="What is exported: 'merged' writes all weights in float32, 'adapter' the adapters and the base's "
        "name.",
    )


class ModelRecipe(Section):
    """The networks."""

    encoder: str = Field(description="The backbone to train and keep: a folder, a Hub name, or 'embedded'.")
    discriminator: str | None = Field(
        None,
        description="Another masked language model as discriminator. It may have its own tokenizer, which must also be "
        "the generator's. Default: a copy of the encoder.",
    )
    generator: str | None = Field(
        None, description="The frozen masked language model that edits sentences. Needed unless rtd_weight is 0."
    )
    generator_precision: Literal["float32", "bfloat16"] | None = Field(
        None, description="Precision of the generator. Default: bfloat16 on accelerators that have it, else float32."
    )
    pooling: Pooling = Field("cls", description="How token vectors become the sentence embedding h.")
    attention: Literal["bidirectional"] | None = Field(
        None, description="'bidirectional' lets the tokens of a decoder-only encoder attend to later tokens too."
    )
    cudnn_attention: bool = Field(
        False,
        description="Allow cuDNN's attention on a GPU. PyTorch uses it where it prefers it and dropout is a multiple "
        "of 1/16. cuDNN makes a plan for every new shape.",
    )
    dropout: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="Every dropout probability in the encoder. Default: those of its configuration. Set 0 only where "
        "the two views of a sentence are meant to be equal.",
    )
    lora: LoraRecipe | None = Field(None, description="Train adapters and leave the encoder's own weights as they are.")
    projection: Literal["batchnorm", "mlp", "none"] = Field(
        "batchnorm", description="The network between h and z. It is used in training only."
    )
    checkpoint: str | None = Field(
        None, description="Folder of an official DiffCSE or SimCSE checkpoint. Training starts from its weights."
    )
    gradient_checkpointing: bool = Field(
        False, description="Recompute activations in the backward pass to save memory."
    )
    compile: bool = Field(
        False, description="Compile the networks' layers with torch.compile. Needs a C++ compiler and ZeRO below 3."
    )
    trust_remote_code: bool = Field(False, description="Allow code that comes with a Hub model to run.")


class DataRecipe(Section):
    """The corpus."""

    files: OneOrMore = Field(
        description=f"Files of {FILE_FORMATS}: paths, addresses (hf://...), globs, a Hub dataset, or 'embedded'."
    )
    columns: Columns = Field(
        None,
        description="Columns by name or number, such as a,b,c: one of sentences, two of pairs, or three, the third a "
        "hard negative. Default: columns with the usual names.",
    )
    max_length: int = Field(
        32, ge=3, le=2**20, description="Tokens per sentence, including special tokens. Longer sentences are truncated."
    )
    separator: Separator = Field(None, description=SEPARATOR)
    header: bool | None = Field(None, description=HEADER)
    limit: int | None = Field(None, ge=1, description="Use only this many sentences, the first that cleaning leaves.")
    strict: bool = Field(False, description="Stop at an undecodable or empty line instead of skipping it.")
    workers: int | None = Field(
        None, ge=1, le=4096, description="Number of processes that tokenize. Default: the number of cores."
    )
    cache_dir: str | None = Field(None, description="Folder for tokenized text. Default: ~/.cache/diffcse-scale.")


class BatchRecipe(Section):
    """Sizes of a training step."""

    sentences: int = Field(
        64, ge=2, le=2**30, description="The global batch: sentences whose embeddings compete in one InfoNCE."
    )
    chunk: int | None = Field(
        None,
        ge=1,
        description="Sentences of a device's share whose activations are in memory at once. Default: all of them.",
    )
    length_groups: int = Field(
        1,
        ge=1,
        description="Without chunks: sort a share by length and pad it in this many groups, which saves padding.",
    )
    packed: bool = Field(
        True,
        description="Compute nothing for padding, where the model family allows it. Never with fidelity 'official'.",
    )
    exchange: Literal["auto", "gather", "ring"] = Field(
        "auto",
        description="How devices exchange embeddings for InfoNCE. With 'gather' every device holds all of them. With "
        "'ring' they are passed on: slower, but memory does not grow with the devices. 'auto' is 'ring' if all "
        "embeddings take more than 4 GiB.",
    )

    @model_validator(mode="after")
    def _one_way_to_cut(self) -> BatchRecipe:
        if self.chunk is not None and self.length_groups != 1:
            raise ValueError("length_groups must be 1 with batch.chunk: every chunk is padded on its own already")
        return self


class ObjectiveRecipe(Section):
    """contrastive_weight * InfoNCE + rtd_weight * RTD (DiffCSE, equation 4)."""

    fidelity: Literal["sampled", "official"] = Field(
        "sampled", description="'sampled' follows the paper, 'official' the official program's arithmetic."
    )
    temperature: float = Field(0.05, gt=0, description="Cosines are divided by the temperature.")
    contrastive_weight: float = Field(1.0, ge=0, description="Weight of InfoNCE. 0 is the paper's RTD-only ablation.")
    rtd_weight: float = Field(
        0.0041,
        ge=0,
        description="Lambda, the weight of replaced-token detection. 0 is SimCSE. The published value is 0.005 with "
        "fidelity 'official'; it equals about 0.0041 where padding does not count.",
    )
    masking_ratio: Share = Field(0.30, description="Share of tokens that are masked for the generator.")
    edits: int | None = Field(
        None,
        ge=1,
        description="Number of edited versions of each sentence that `diffcse-scale prepare --edits` made. Training "
        "then needs no generator. Default: the generator edits during training.",
    )
    hard_negative_weight: float = Field(
        0.0, description="Added to the logit of a sentence with its own hard negative (three columns)."
    )
    false_negatives: Literal["mask", "keep"] = Field(
        "mask",
        description="For pairs and triples: 'mask' does not contrast an anchor with a text equal to the anchor or its "
        "positive, 'keep' does. Fidelity 'official' always uses 'keep'.",
    )
    condition: Literal["own", "other", "detached"] = Field(
        "own",
        description="Which z the discriminator gets: that of the same sentence ('own'). For studies: 'other' is the z "
        "of another sentence on the same device, 'detached' is its own z without a gradient.",
    )
    discriminator_warmup: int = Field(
        0,
        ge=0,
        description="Number of first steps in which RTD trains only the discriminator and not the encoder.",
    )
    discriminator_rate: float = Field(
        1.0,
        gt=0,
        description="Learning rate of discriminator and RTD head, as a multiple of optimizer.learning_rate.",
    )
    rtd_share: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Target norm of RTD's gradient in z, as a share of InfoNCE's. Lambda starts at rtd_weight and is "
        "adjusted to this target. Default: lambda stays rtd_weight.",
    )
    parameter_share_every: int | None = Field(
        None,
        ge=1,
        description="Every this many steps, compare the gradients of RTD and InfoNCE in the encoder's parameters too. "
        "It needs ZeRO-0, and such a step takes about twice as long. If absent, they are compared in z alone.",
    )
    loss_precision: Literal["model", "float32"] = Field(
        "model",
        description="Dtype in which InfoNCE multiplies embeddings: 'model' uses the networks' compute dtype and "
        "accumulates in float32. Fidelity 'official' always uses float32.",
    )

    @model_validator(mode="after")
    def _something_to_learn(self) -> ObjectiveRecipe:
        if self.contrastive_weight == 0 and self.rtd_weight == 0:
            raise ValueError("contrastive_weight and rtd_weight are both 0: there is nothing to learn")
        if self.edits is not None and self.fidelity == "official":
            raise ValueError("edits must be absent: fidelity 'official' edits with dropout, anew in every step")
        for name in ("rtd_share", "parameter_share_every"):
            if getattr(self, name) is not None and not self.terms_meet:
                raise ValueError(
                    f"{name} needs both terms in z: weights above 0, and a condition that is not 'detached'"
                )
        if self.rtd_weight > 0 and self.masking_ratio == 0:
            raise ValueError("masking_ratio is 0, so that RTD has nothing to find; raise it, or set rtd_weight to 0")
        return self

    @property
    def terms_meet(self) -> bool:
        """Whether InfoNCE and RTD both have a gradient in z."""
        return self.contrastive_weight > 0 and self.rtd_weight > 0 and self.condition != "detached"

    @property
    def masks_false_negatives(self) -> bool:
        """Whether batches say which texts are equal."""
        return self.false_negatives == "mask" and self.fidelity != "official"

    @property
    def contrasts_in_float32(self) -> bool:
        """Whether InfoNCE multiplies in at least float32, whatever the networks' compute dtype."""
        return self.loss_precision == "float32" or self.fidelity == "official"


class OptimizerRecipe(Section):
    """The optimizer and its schedule."""

    name: OptimizerName = Field("adamw", description="The optimizer.")
    learning_rate: float = Field(gt=0, description="Peak learning rate.")
    weight_decay: float = Field(
        0.0, ge=0, description="Decoupled weight decay. It does not apply to biases and normalisation weights."
    )
    betas: tuple[Decay, Decay] = Field((0.9, 0.999), description="Decay rates of AdamW's two moments.")
    eps: float = Field(1e-8, gt=0, description="Added to the root of the second moment.")
    schedule: Schedule = Field("linear", description="How the learning rate falls to 0 after the warm-up.")
    warmup: Share = Field(0.0, description="Share of all steps over which the learning rate rises from 0.")
    clip: float = Field(1.0, ge=0, description="Largest norm of the whole gradient. 0 turns clipping off.")

    @property
    def open_ended(self) -> bool:
        """Whether a step's learning rate is independent of the total number of steps."""
        return self.schedule == "constant" and self.warmup == 0


class EvaluationRecipe(Section):
    """What is measured while training."""

    data: str | None = Field(
        None,
        description="A folder with STSB/dev.tsv, a file of graded pairs, 'hub' or 'embedded'. With null nothing is "
        "evaluated.",
    )
    every: int = Field(125, ge=1, description="Steps between evaluations.")
    max_length: int = Field(
        128, ge=3, le=2**20, description="Tokens per sentence in evaluation and in the exported model."
    )


class Recipe(Section):
    """Everything that determines a result, including the seed.

    Example:
        >>> from diffcse_scale.recipe import Recipe
        >>> model = {"encoder": "bert-base-uncased", "generator": "distilbert-base-uncased"}
        >>> others = {"data": {"files": "corpus.txt"}, "optimizer": {"learning_rate": 7e-6}}
        >>> recipe = Recipe.model_validate({"name": "mine", "model": model, **others})
        >>> recipe.batch.sentences, recipe.objective.temperature, recipe.steps(per_epoch=100)
        (64, 0.05, 100)
    """

    name: FolderName = Field(description="Run name. Output goes to runs/NAME unless --output is given.")
    seed: int = Field(42, ge=0, description="Seed of all random choices: order, dropout, corruption, sampling.")
    epochs: float = Field(1.0, gt=0, le=1e9, description="Passes over the corpus. A fraction is allowed.")
    max_steps: int | None = Field(None, ge=1, description="Stop after this many steps even if epochs asks for more.")
    log_every: int = Field(10, ge=1, description="Steps between log lines.")
    checkpoint_every: int = Field(500, ge=1, description="Steps between checkpoints.")
    keep_checkpoints: int = Field(2, ge=1, description="Number of newest checkpoints to keep, besides the best.")
    checkpoint_background: bool = Field(True, description="Write checkpoints while training continues.")
    max_skipped_steps: int = Field(
        5, ge=1, description="Skip steps whose loss or gradient is not finite; stop after this many in a row."
    )
    model: ModelRecipe
    data: DataRecipe
    batch: BatchRecipe = BatchRecipe()
    objective: ObjectiveRecipe = ObjectiveRecipe()
    optimizer: OptimizerRecipe
    evaluation: EvaluationRecipe = EvaluationRecipe()

    def steps(self, per_epoch: int) -> int:
        """Number of steps of the whole run if an epoch has `per_epoch` steps."""
        steps = max(1, math.floor(per_epoch * self.epochs))
        return steps if self.max_steps is None else min(steps, self.max_steps)

    @property
    def packed(self) -> bool:
        """Whether batches mark the padding that networks may skip. Fidelity 'official' must compute padding."""
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
        """A line `section.field: mine, not theirs` for each field in which `other` (a dumped recipe) differs.

        Fields that did not exist when `other` was dumped are set by `completed` or have their defaults.
        """
        other = completed(other)
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
        """Required fields that are missing from `other` (a dumped recipe), which means that it was cut short."""
        try:
            cls.model_validate(other)
        except ValidationError as error:
            return [".".join(map(str, found["loc"])) for found in error.errors() if found["type"] == "missing"]
        return []


# how older runs behaved before `objective` had these fields, if that differs from the field's default
BEFORE = {"false_negatives": "keep", "loss_precision": "float32"}


def unsaid(dumped: dict[str, Any]) -> dict[str, str]:
    """Fields of `BEFORE` that a run's recipe is too old to have: `objective.field` to how that run behaved."""
    objective = dumped.get("objective")
    said = objective if isinstance(objective, dict) else BEFORE
    return {f"objective.{name}": value for name, value in BEFORE.items() if name not in said}


def completed(dumped: dict[str, Any]) -> dict[str, Any]:
    """A run's recipe with its `unsaid` fields added."""
    return {**dumped, "objective": {**BEFORE, **dumped["objective"]}} if unsaid(dumped) else dumped


def flatten(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Flatten nested sections into pairs of `section.field` and value."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
