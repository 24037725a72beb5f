"""The options of `diffcse-scale encode`, in their own file so that `--help` need not import torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field, model_validator

from diffcse_scale.foundation.errors import either
from diffcse_scale.recipe import FILE_FORMATS, HEADER, SEPARATOR, OneOrMore, Pooling, Section, Separator

OWN_COLUMNS = ("row", "text", "embedding")  # columns that a Parquet shard has itself


def _split(value: Any) -> Any:
    """Split names at commas, in one text or in several."""
    entries = [value] if isinstance(value, str) else value
    if isinstance(entries, list) and all(isinstance(entry, str) for entry in entries):
        return [name.strip() for entry in entries for name in entry.split(",")]
    return value


class EncodeOptions(Section):
    """Input, model, and how to compute and store embeddings.

    Example:
        >>> from diffcse_scale.encoding import EncodeOptions
        >>> options = EncodeOptions(model="runs/mine", input=["corpus.txt"], output="embeddings", dtype="int8")
        >>> options.format, options.window
        ('parquet', 8192)
    """

    model: str = Field(description="A run, or a sentence-transformers or transformers folder.")
    input: OneOrMore = Field(
        description=f"Files of {FILE_FORMATS}: paths, addresses (s3://...) and globs. May be given several times."
    )
    output: str = Field(
        description="Folder to write. If it holds part of the same work, encoding continues from there."
    )
    column: str | None = Field(None, description="Column of the sentences. Default: detected.")
    separator: Separator = Field(None, description=SEPARATOR)
    header: bool | None = Field(None, description=HEADER)
    format: Literal["parquet", "npy"] = Field("parquet", description="Format of the shards.")
    dtype: Literal["float32", "float16", "int8", "binary"] = Field(
        "float32",
        description="Dtype of the stored numbers. int8 is scaled to the ranges of the first window; binary keeps the "
        "signs.",
    )
    keep_text: bool = Field(False, description="With parquet: also store the sentences.")
    keep_columns: Annotated[list[str] | None, BeforeValidator(_split)] = Field(
        None, description="With parquet: also store these columns of the input unchanged, such as id,title."
    )
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="Compute precision. auto is bfloat16 on accelerators that have it, else float32."
    )
    devices: str = Field(
        "auto",
        description="A process runs on each of these devices, such as cuda:0,cuda:1 or cpu,cpu. auto is every "
        "accelerator, or all cores.",
    )
    window: int = Field(8192, ge=1, description="Rows that are sorted by length together and make one output shard.")
    batch_tokens: int | None = Field(
        None, ge=1, description="Tokens per batch, padding included. Default: 1,024 on CPUs, else 32,768."
    )
    pooling: str | None = Field(None, description=f"{either(get_args(Pooling))}. Default: the model's own.")
    max_length: int | None = Field(None, ge=3, description="Tokens per sentence. Default: the model's own limit.")
    prompt_name: str | None = Field(None, description="One of the model's prompts. Default: its default prompt.")
    overwrite: bool = Field(
        False, description="Replace embeddings of other work in the output folder. Other files are always kept."
    )
    search: bool = Field(False, description="Answer queries from the terminal afterwards, as `search` does.")

    @model_validator(mode="after")
    def _consistent(self) -> EncodeOptions:
        for name in ("keep_text", "keep_columns"):
            if getattr(self, name) and self.format == "npy":
                raise ValueError(f"{name} needs format parquet: .npy files hold numbers only")
        kept = [name.lower() for name in self.keep_columns or ()]
        for name in kept:
            if not name or kept.count(name) > 1:
                raise ValueError("keep_columns takes names separated by commas, each once")
            if name in OWN_COLUMNS:
                own = ", ".join(OWN_COLUMNS)
                instead = "for the sentences give --keep-text, another column rename" if name == "text" else "rename it"
                raise ValueError(
                    f"keep_columns cannot keep {name}, because the shards' own columns are {own}; {instead}"
                )
        return self
