"""A recipe says WHAT to train: backbone, text, objective, schedule. This file is its schema.

A recipe is a YAML file of `recipes/` (named without path or ending) or a path to one of your own. Any field can
be set on the command line as `section.field=value`. How a run is sharded (ZeRO stage, precision, offload) is
never part of a recipe; that is a DeepSpeed configuration, see `ds_configs/`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from diffcse_scale.errors import InputError
from diffcse_scale.shipped import shipped

EMBEDDED = "embedded"


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Share = Annotated[float, Field(ge=0, le=1)]
OneOrMore = Annotated[list[str], BeforeValidator(_as_list), Field(min_length=1)]


class Section(BaseModel):
    """Unknown keys are refused; a recipe never changes once it is read."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class LoraRecipe(Section):
    """Low-rank adapters on a frozen encoder (arXiv 2106.09685), through `peft`."""

    rank: int = Field(16, ge=1, description="rank of the two matrices that each adapted layer gets")
    alpha: float = Field(32.0, gt=0, description="an adapter's output is multiplied by alpha / rank")
    dropout: Share = Field(
        0.1, description="dropout before each adapter; in a backbone that has none it is what tells two views apart"
    )
    target_modules: list[str] | None = Field(
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
    pooling: Literal["cls", "mean", "last", "first_last_mean"] = Field(
        "cls", description="how token vectors become the sentence embedding h"
    )
    attention: Literal["bidirectional"] | None = Field(
        None, description="'bidirectional' lets the tokens of a decoder-only encoder see later ones too"
    )
    dropout: float | None = Field(
        None, ge=0, lt=1, description="every dropout probability in the encoder; those of its configuration if absent"
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
        description="text, .gz/.xz/.zst text, .jsonl, .csv, .tsv, .parquet; paths, globs, a Hub dataset, or 'embedded'"
    )
    columns: list[str] | None = Field(
        None,
        min_length=1,
        max_length=3,
        description="one column of sentences, two of pairs, or three with a hard negative; found by itself if absent",
    )
    max_length: int = Field(32, ge=3, description="tokens a sentence, special ones included; longer are truncated")
    limit: int | None = Field(None, ge=1, description="use only the first so many sentences that remain after cleaning")
    strict: bool = Field(False, description="an undecodable or empty line stops the run instead of being skipped")
    workers: int | None = Field(None, ge=1, description="processes that tokenize; the number of cores if absent")
    cache_dir: str | None = Field(None, description="where tokenized text is kept; ~/.cache/diffcse-scale if absent")


class BatchRecipe(Section):
    """Sizes of a training step."""

    sentences: int = Field(64, ge=2, description="the global batch: sentences whose embeddings compete in one InfoNCE")
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
    rtd_weight: float = Field(0.05, ge=0, description="lambda, the weight of replaced-token detection; 0 is SimCSE")
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
    """AdamW and its schedule."""

    learning_rate: float = Field(gt=0, description="at its largest")
    weight_decay: float = Field(0.0, ge=0, description="decoupled; not applied to biases and normalisation weights")
    betas: tuple[float, float] = Field((0.9, 0.999), description="decay of AdamW's two moments")
    eps: float = Field(1e-8, gt=0, description="added to the root of the second moment")
    schedule: Literal["linear", "cosine", "constant"] = Field("linear", description="decay to 0 after the warm-up")
    warmup: Share = Field(0.0, description="share of all steps over which the learning rate rises from 0")
    clip: float = Field(1.0, ge=0, description="largest norm of the whole gradient; 0 turns clipping off")


class EvaluationRecipe(Section):
    """What is measured while training."""

    data: str | None = Field(
        None,
        description="folder with STSB/dev.tsv, file of score TAB sentence TAB sentence, 'hub', 'embedded'; or none",
    )
    every: int = Field(125, ge=1, description="steps between evaluations")
    max_length: int = Field(128, ge=3, description="tokens a sentence in evaluation and in the exported model")


class Recipe(Section):
    """Everything that a result is a function of, together with the seed."""

    name: str = Field(description="of the run; its folder is runs/NAME unless --output says otherwise")
    seed: int = Field(42, ge=0, description="of everything that is drawn: order, dropout, corruption, sampling")
    epochs: float = Field(1.0, gt=0, description="passes over the corpus; a fraction is allowed")
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
        """Lines `section.field: mine, not theirs` for each field in which `other` (a dumped recipe) differs."""
        mine, theirs = dict(flatten(self.model_dump(mode="json"))), dict(flatten(other))
        return [
            f"{key}: {mine.get(key)!r}, not {theirs.get(key)!r}"
            for key in sorted(mine.keys() | theirs.keys())
            if mine.get(key) != theirs.get(key)
        ]


def shipped_recipes() -> dict[str, str]:
    """Name to YAML text of every recipe that comes with the package."""
    return {file.stem: file.read_text(encoding="utf-8") for file in sorted(shipped("recipes").glob("*.yaml"))}


def load_recipe(name_or_path: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read, override and validate a recipe.

    Args:
        name_or_path: a shipped recipe (`bert_base_sts`) or a path to a YAML file.
        overrides: `section.field=value`, the value in YAML.

    Raises:
        InputError: no such recipe, malformed YAML, unknown key (names the nearest), wrong type or range.
    """
    values = _read_yaml(name_or_path)
    for override in overrides:
        _apply_override(values, override)
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        problems = "; ".join(explain(problem, Recipe) for problem in error.errors())
        raise InputError(f"Recipe {name_or_path}: {problems}.") from None


def _read_yaml(name_or_path: str) -> dict[str, Any]:
    path = Path(name_or_path)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise InputError(f"Recipe {path}: no such file; shipped recipes are {', '.join(shipped_recipes())}.")
        text = path.read_text(encoding="utf-8")
    else:
        recipes = shipped_recipes()
        if name_or_path not in recipes:
            raise InputError(
                f"Recipe {name_or_path!r} is not shipped{nearest(name_or_path, recipes)}; "
                f"there are {', '.join(recipes)}, or give the path of a .yaml file."
            )
        text = recipes[name_or_path]
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"Recipe {name_or_path} is not valid YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(values, dict):
        raise InputError(f"Recipe {name_or_path} must be a mapping of sections, not {type(values).__name__}.")
    return values


def _apply_override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise InputError(f"Override {override!r} must have the form section.field=value.")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise InputError(f"Override {override!r}: {text!r} is not a YAML value; quote it.") from None
    if isinstance(value, str):
        value = _number(value)
    *sections, field = key.split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise InputError(f"Override {override!r}: {section} is a field, not a section.")
    values[field] = value


def _number(text: str) -> str | float:
    """YAML 1.1 reads 1e-4 as a string; people who write it mean the number."""
    try:
        return float(text)
    except ValueError:
        return text


def flatten(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested sections to `section.field` and value."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def nearest(word: str, known: Iterable[str]) -> str:
    """` (did you mean X?)` for the word of `known` that is most like `word`, or nothing."""
    match = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" (did you mean {match[0]}?)" if match else ""


def explain(problem: Any, schema: type[BaseModel]) -> str:
    """One of the problems that pydantic found with values for `schema`, in a user's words."""
    location = problem["loc"]
    key = ".".join(str(part) for part in location)
    if problem["type"] == "extra_forbidden":
        fields = _fields_of(location, schema)
        return f"unknown key {key}{nearest(str(location[-1]), fields)}, allowed here are {', '.join(fields)}"
    if problem["type"] == "missing":
        return f"{key} is missing"
    message = problem["msg"].removeprefix("Value error, ")
    if not key:
        return message
    given = problem.get("input")
    shown = "" if isinstance(given, dict) else f" (given: {given!r})"
    return f"{key}: {message[0].lower()}{message[1:]}{shown}"


def _fields_of(location: Sequence[int | str], schema: type[BaseModel]) -> dict[str, Any]:
    """The fields of the section that contains `location`."""
    for part in location[:-1]:
        annotation = schema.model_fields[str(part)].annotation
        sections = [a for a in (annotation, *get_args(annotation)) if isinstance(a, type) and issubclass(a, BaseModel)]
        if not sections:
            return {}
        (schema,) = sections
    return dict(schema.model_fields)
