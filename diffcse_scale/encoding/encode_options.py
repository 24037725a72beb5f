"""The options of `diffcse-scale encode`; apart from the encoding itself, so that `--help` need not import torch."""

from __future__ import annotations

from typing import Literal, get_args

from pydantic import Field, model_validator

from diffcse_scale.foundation.errors import either
from diffcse_scale.recipe import FILE_FORMATS, HEADER, SEPARATOR, OneOrMore, Pooling, Section, Separator


class EncodeOptions(Section):
    """What to encode with what, how to compute, how to store."""

    model: str = Field(description="a run, or a sentence-transformers or transformers folder")
    input: OneOrMore = Field(
        description=f"{FILE_FORMATS}; paths, addresses (s3://...) and globs; may be given several times"
    )
    output: str = Field(description="folder to write; if it holds a part of the same work, the rest is done")
    column: str | None = Field(None, description="column of the sentences; found by itself if absent")
    separator: Separator = Field(None, description=SEPARATOR)
    header: bool | None = Field(None, description=HEADER)
    format: Literal["parquet", "npy"] = Field("parquet", description="of the shards")
    dtype: Literal["float32", "float16", "int8", "binary"] = Field(
        "float32",
        description="of the stored numbers; int8 is scaled to the ranges of the first window, binary keeps the signs",
    )
    keep_text: bool = Field(False, description="parquet: also store the sentences")
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="of the computation; auto is bfloat16 on accelerators that have it, else float32"
    )
    devices: str = Field(
        "auto", description="as cuda:0,cuda:1 or cpu,cpu, a process each; auto is every accelerator, or all cores"
    )
    window: int = Field(8192, ge=1, description="rows sorted by length together, which are a shard of the output")
    batch_tokens: int | None = Field(
        None, ge=1, description="tokens of a batch, padding included; if absent 1,024 on CPUs, else 32,768"
    )
    pooling: str | None = Field(None, description=f"{either(get_args(Pooling))}; the model's own if absent")
    max_length: int | None = Field(None, ge=3, description="tokens a sentence; the model's own limit if absent")
    prompt_name: str | None = Field(None, description="one of the model's prompts; its default prompt if absent")
    overwrite: bool = Field(
        False, description="replace embeddings of other work in the output folder; other files stay in any case"
    )
    search: bool = Field(False, description="answer queries from the terminal afterwards, as `search` does")

    @model_validator(mode="after")
    def _consistent(self) -> EncodeOptions:
        if self.keep_text and self.format == "npy":
            raise ValueError("keep_text needs format parquet: .npy files hold numbers only")
        return self
