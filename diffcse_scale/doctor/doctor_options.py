"""The options of `diffcse-scale doctor`; apart from the examination itself, so that `--help` need not import torch."""

from __future__ import annotations

from pathlib import Path

from pydantic import ConfigDict, Field

from diffcse_scale.recipe import Section


class DoctorOptions(Section):
    """What to look at beside the machine itself."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    ranks: int | None = Field(None, ge=1, description="also start so many processes here and measure an all-reduce")
    output: Path = Field(Path("runs"), description="the folder that runs will be written to")
    seconds: float = Field(60.0, gt=0, description="how long to wait for ranks to meet, and for an all-reduce to end")
    json_file: Path | None = Field(None, alias="json", description="also write the table here")
    overwrite: bool = Field(False, description="replace the file of --json whatever it is")
